"""Labelled images through a frozen backbone: one vector an image and stage."""

import logging
from collections.abc import Callable, Sequence

import torch
from detectron2.utils import comm
from torch.nn import functional as F
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Cells a side that a stage's map is averaged to, so that a ResNet-50 gives 8,000 to 9,000 numbers
# whatever the stage (Goyal et al. 2019, "Scaling and benchmarking self-supervised visual
# representation learning", which pools a 224-pixel image to the same cells).
GRID = {"res2": 6, "res3": 4, "res4": 3, "res5": 2}
POOLS = ("average", "grid")
Features = dict[tuple[str, str], torch.Tensor]
Batch = tuple[list[int], torch.Tensor | None]


def pool_map(feature_map: torch.Tensor, stage: str, pool: str) -> torch.Tensor:
    """Average a map of shape (N, C, H, W) to (N, C), or with "grid" to (N, C * GRID * GRID)."""
    if pool == "average":
        return feature_map.mean(dim=(2, 3))
    return F.adaptive_avg_pool2d(feature_map, GRID[stage]).flatten(1)


def extract(
    backbone: torch.nn.Module,
    dataset: torch.utils.data.Dataset,
    *,
    pools: Sequence[str] = ("average",),
    batch_size: int = 64,
    num_workers: int = 0,
    timeout: float = 0,
    device: str | torch.device = "cpu",
    start_worker: Callable[[int], None] | None = None,
) -> tuple[Features, torch.Tensor]:
    """The pooled features of all readable images; no random number is drawn, no weight changed.

    Args:
        backbone: a :class:`FrozenBackbone`.
        dataset: gives (number, uint8 image of shape (3, S, S), or None where it is unreadable).
        pools: any of POOLS, see :func:`pool_map`.
        timeout: seconds that a loader process may take for a batch; 0: any number.
        start_worker: called in each loader process.

    Returns:
        float32 features of shape (N, D) by (pool, stage), and the numbers of the N images.

    Raises:
        ValueError: no image can be read.
    """
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # otherwise it draws a number of the training's
    )
    parts: dict[tuple[str, str], list[torch.Tensor]] = {}
    numbers: list[int] = []
    silent = not comm.is_main_process()
    for found, images in tqdm(loader, "Features", mininterval=10, delay=10, disable=silent):
        if images is None:
            continue
        numbers += found
        for stage, feature_map in backbone(images.to(device)).items():
            for pool in pools:
                pooled = pool_map(feature_map.float(), stage, pool).cpu()
                parts.setdefault((pool, stage), []).append(pooled)
    size = len(dataset)  # type: ignore[arg-type]
    if not numbers:
        raise ValueError(f"None of {size} images can be read.")
    if len(numbers) < size:
        logger.warning("%d of %d images cannot be read and are left out", size - len(numbers), size)
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, torch.tensor(numbers)


def _collate(samples: list[tuple[int, torch.Tensor | None]]) -> Batch:
    readable = [(number, image) for number, image in samples if image is not None]
    if not readable:
        return [], None
    return [number for number, _ in readable], torch.stack([image for _, image in readable])
