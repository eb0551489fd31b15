"""Which tensor of one format is which tensor of another; pure functions over names."""

import re
from collections.abc import Iterable
from typing import Any

PRETRAINING_PREFIX = "query_encoder.backbone."
# Where a backbone can stand in a model: a detector with and without FPN, or DetCo itself.
_MODEL_PREFIXES = ("backbone.bottom_up.", "backbone.", PRETRAINING_PREFIX, "key_encoder.backbone.")
C4_RES5 = "roi_heads.res5."
C4_EXTRA_NORM = "roi_heads.res5.norm."
PARTS = ("stem", "res2", "res3", "res4", "res5")

# Both libraries name a ResNet's tensors by module; these are the modules whose names differ.
_MODULES = (
    ("conv1", "stem.conv1"),
    ("bn1", "stem.conv1.norm"),
    *((f"layer{i}", f"res{i + 1}") for i in (1, 2, 3, 4)),
)
TORCHVISION_PARTS = {pair[0] for pair in _MODULES}
_BLOCK_MODULES = (
    *((f"conv{i}", f"conv{i}") for i in (1, 2, 3)),
    *((f"bn{i}", f"conv{i}.norm") for i in (1, 2, 3)),
    ("downsample.0", "shortcut"),
    ("downsample.1", "shortcut.norm"),
)
_TENSORS = ("weight", "bias", "running_mean", "running_var")
# The children of torchvision's (and timm's) ResNet by their place in it.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _rename(name: str, theirs: int, ours: int) -> str | None:
    """A tensor's name under the other column of the tables; None if it has none."""
    module, _, tensor = name.rpartition(".")
    if tensor not in _TENSORS:
        return None
    outer = {pair[theirs]: pair[ours] for pair in _MODULES}
    if module in outer:
        return f"{outer[module]}.{tensor}"
    stage, _, rest = module.partition(".")
    block, _, inner = rest.partition(".")
    other = {pair[theirs]: pair[ours] for pair in _BLOCK_MODULES}.get(inner)
    if stage not in outer or not block.isdigit() or other is None:
        return None
    return f"{outer[stage]}.{block}.{other}.{tensor}"


def torchvision_to_detectron2(name: str) -> str | None:
    """Detectron2's name of a ResNet tensor of torchvision (timm, MoCo, OpenSelfSup).

    >>> torchvision_to_detectron2("layer1.0.downsample.1.bias")
    'res2.0.shortcut.norm.bias'

    Returns:
        the name, or None for what has no place in a Detectron2 ResNet (fc, MLP, counters of
        batches, parts of other networks).
    """
    return _rename(name, 0, 1)


def detectron2_to_torchvision(name: str) -> str | None:
    """torchvision's (and timm's) name of a tensor of Detectron2's ResNet; None if it has none.

    >>> detectron2_to_torchvision("res2.0.shortcut.norm.bias")
    'layer1.0.downsample.1.bias'
    """
    return _rename(name, 1, 0)


def children_to_torchvision(name: str) -> str | None:
    """torchvision's name of a tensor in `nn.Sequential(*list(resnet.children())[:-1])`.

    >>> children_to_torchvision("4.0.conv1.weight")
    'layer1.0.conv1.weight'
    """
    child, _, rest = name.partition(".")
    return f"{_CHILDREN[child]}.{rest}" if child in _CHILDREN else None


def backbone_slots(model_names: Iterable[str]) -> dict[str, list[str]]:
    """Where each backbone tensor stands in a model.

    Args:
        model_names: all names of the model's state dict.

    Returns:
        the model's names by backbone name. A C4 detector's res5 is in its ROI heads (without the
        extra norm, which is deliberately new); DetCo has two backbones, so two names for each.
    """
    names = [name for name in model_names if not name.endswith("num_batches_tracked")]
    has_fpn = any(name.startswith(_MODEL_PREFIXES[0]) for name in names)
    slots: dict[str, list[str]] = {}
    for name in names:
        prefix = next((p for p in _MODEL_PREFIXES if name.startswith(p)), None)
        if prefix == "backbone." and has_fpn:
            continue  # the FPN's own layers
        if name.startswith(C4_RES5) and not name.startswith(C4_EXTRA_NORM):
            prefix = "roi_heads."
        if prefix is not None:
            slots.setdefault(name[len(prefix) :], []).append(name)
    return slots


_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_WIDEST = 4096  # channels in res2; wider ones are no ResNet's, and a model of them no size to build


def describe_resnet(backbone: dict[str, Any]) -> dict[str, int] | None:
    """The MODEL.RESNETS keys of the ResNet or ResNeXt that these tensors are nearest to.

    The first block of a stage is enough to tell its kind, so that a file with missing blocks is
    taken for the smallest ResNet that could contain it.

    Args:
        backbone: tensors by Detectron2 backbone name.

    Returns:
        None when they are not a ResNet's.
    """
    first: tuple[int, ...] = getattr(backbone.get("res2.0.conv1.weight"), "shape", ())
    if len(first) != 4 or not 0 < first[0] <= _WIDEST:
        return None
    bottleneck = "res2.0.conv3.weight" in backbone or "res3.0.conv3.weight" in backbone
    blocks = tuple(
        1
        + max((int(m[1]) for n in backbone if (m := re.match(rf"{stage}\.(\d+)\.", n))), default=-1)
        for stage in ("res2", "res3", "res4", "res5")
    )
    fitting = [
        depth
        for (is_bottleneck, size), depth in _DEPTHS.items()
        if is_bottleneck == bottleneck and all(a <= b for a, b in zip(blocks, size))
    ]
    if not fitting:
        return None
    width = first[0]
    if not bottleneck:  # Detectron2 has them in one width
        return {"DEPTH": min(fitting), "RES2_OUT_CHANNELS": width} if width == 64 else None
    second: tuple[int, ...] = getattr(backbone.get("res2.0.conv2.weight"), "shape", first)
    if len(second) != 4 or second[1] == 0 or width % second[1]:
        return None
    groups = width // second[1]
    return {"DEPTH": min(fitting), "NUM_GROUPS": groups, "WIDTH_PER_GROUP": second[1]}
