"""Every check before the start, but for what OUTPUT_DIR holds: weights, images, batch, W&B.

The stream and k-NN are imported where they are checked: fine-tuning needs neither.
"""

import importlib.util
import logging
import os

from detectron2.config import CfgNode

from ..config_files import flatten
from .output_dir import BATCH_NORMS

logger = logging.getLogger(__name__)


def check_weights(cfg: CfgNode) -> None:
    """
    Raises:
        FileNotFoundError: MODEL.WEIGHTS is no address, and no file either.
    """
    path = cfg.MODEL.WEIGHTS
    files = path, path.partition("?")[0], path.rpartition("#")[0]  # with a query, or a choice
    if path and "://" not in path and not any(map(os.path.isfile, files)):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {os.path.abspath(path)!r}.")


def check_learns(cfg: CfgNode, processes: int, refuse: bool = True) -> None:
    """Refuse stages that stay random, and batch norm of one image at a time.

    Args:
        refuse: the latter, which a detector survives; otherwise warn of it.

    Raises:
        ValueError: says which keys to change.
    """
    frozen, batch = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.SOLVER.IMS_PER_BATCH
    parts = cfg.SOLVER.ACCUMULATION_STEPS if refuse else 1
    if frozen > 0 and not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {frozen} and MODEL.WEIGHTS is empty: the first {frozen} "
            "parts of the backbone would stay as they are drawn. Set MODEL.BACKBONE.FREEZE_AT to "
            "0, or name weights."
        )
    norms = [
        f"MODEL.{key}"
        for key, value in flatten(cfg.MODEL)
        if key.endswith("NORM") and value in (BATCH_NORMS if processes == 1 else ("BN",))
    ]
    if batch // (processes * parts) > 1 or not norms:
        return
    problem = (
        f"SOLVER.IMS_PER_BATCH is {batch}, which {processes} processes of {parts} "
        f"SOLVER.ACCUMULATION_STEPS each cut into single images, of which batch norm "
        f"({', '.join(norms)}) learns nothing. Make the batch at least {2 * processes * parts}"
        f"{', or the steps fewer' if parts > 1 else ''}."
    )
    if refuse:
        raise ValueError(problem)
    logger.warning(problem)


def check_run(cfg: CfgNode, processes: int) -> int:
    """Refuse what would fail in every process, before any process starts; counts the images.

    Tar shards without an index get one.

    Raises:
        ValueError, FileNotFoundError, ImportError: says what to change.
    """
    spec = importlib.util.find_spec("wandb") if cfg.WANDB.PROJECT else None
    if cfg.WANDB.PROJECT and (spec is None or spec.origin is None):  # a folder of that name
        raise ImportError(
            f"WANDB.PROJECT is {cfg.WANDB.PROJECT!r}, and Weights & Biases is not installed: "
            "pip install wandb"
        )
    if cfg.TEST.KNN.DATASET:
        from .knn import load_knn_halves

        load_knn_halves(cfg)
    from ..data.stream import load_train_images

    num_images = len(load_train_images(cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR))
    check_batch(cfg, num_images, processes)
    check_learns(cfg, processes)
    return num_images


def check_batch(cfg: CfgNode, num_images: int, processes: int) -> None:
    """
    Raises:
        ValueError: a batch that the processes cannot share or the data cannot fill, or more loader
            processes than images.
    """
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    workers = cfg.DATALOADER.NUM_WORKERS
    if parts < 1 or batch % (processes * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which {processes} processes of {parts} "
            "SOLVER.ACCUMULATION_STEPS each cannot share equally; make it a multiple of "
            f"{processes * max(parts, 1)}, and the steps at least 1."
        )
    if batch > num_images:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, but DATASETS.TRAIN has {num_images} images; the "
            "same image would be its own negative. Lower the batch or add images."
        )
    if processes * workers > num_images:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {workers} for each of {processes} processes, more than "
            f"the {num_images} images of DATASETS.TRAIN; lower it to at most "
            f"{num_images // processes}."
        )
