"""Which tensor of one format is which tensor of another; pure functions over names."""

import re
from collections.abc import Iterable
from typing import Any

PRETRAINING_PREFIX = "query_encoder.backbone."
# Where a backbone can stand in a model: a detector with and without FPN, or DetCo itself.
_MODEL_PREFIXES = ("backbone.bottom_up.", "backbone.", PRETRAINING_PREFIX, "key_encoder.backbone.")
_C4_RES5 = "roi_heads.res5."
_C4_EXTRA_NORM = "roi_heads.res5.norm."
# A name that every ResNet of the layout has, by which its prefix is found.
_ANCHORS = {"torchvision": "layer1.0.conv1.weight", "Detectron2": "res2.0.conv1.weight"}
_MOMENTUM_COPY = re.compile(r"encoder_k|key_encoder|momentum|teacher|target|ema")
_RESNET_NAME = re.compile(r"(stem|res[2-5])\.")


def torchvision_to_detectron2(name: str) -> str | None:
    """Detectron2's name of a torchvision (MoCo, OpenSelfSup) ResNet tensor.

    >>> torchvision_to_detectron2("layer1.0.downsample.1.bias")
    'res2.0.shortcut.norm.bias'

    Returns:
        the name, or None for what has no place in a Detectron2 backbone (fc, MLP, counters).
    """
    if name.endswith("num_batches_tracked"):
        return None
    if re.match(r"(conv1|bn1)\.", name):
        name = "stem." + name
    elif match := re.match(r"layer([1-4])\.", name):
        name = f"res{int(match[1]) + 1}." + name[match.end() :]
    else:
        return None
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return re.sub(r"bn([1-3])\.", r"conv\1.norm.", name)


def _find_prefix(names: Iterable[str], anchor: str) -> str | None:
    """The prefix of the anchor, of the trained encoder rather than of its momentum copy."""
    prefixes = [name[: -len(anchor)] for name in names if name.endswith(anchor)]
    prefixes = [
        p for p in prefixes if (p == "" or p.endswith(".")) and not _MOMENTUM_COPY.search(p)
    ]
    return min(prefixes, key=len) if prefixes else None


def extract_backbone(state: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """Take a backbone out of the weights of some format, under Detectron2's backbone names.

    Knows pretraining checkpoints of this project, and ResNets under torchvision's or Detectron2's
    names behind any prefix (`module.`, `backbone.`, `encoder_q.`, `encoder_q.0.`, ...).

    Args:
        state: tensors by name.

    Returns:
        the backbone's tensors by Detectron2 name, and a description of the format that was
        recognised; None when there is no backbone of a known layout.
    """
    found: dict[str, Any] = {
        name[len(PRETRAINING_PREFIX) :]: value
        for name, value in state.items()
        if name.startswith(PRETRAINING_PREFIX) and not name.endswith("num_batches_tracked")
    }
    if found:
        return found, "DetCo pretraining checkpoint (query encoder)"
    for layout, anchor in _ANCHORS.items():
        prefix = _find_prefix(state, anchor)
        if prefix is None:
            continue
        for name, value in state.items():
            if not name.startswith(prefix) or name.endswith("num_batches_tracked"):
                continue
            bare: str | None = name[len(prefix) :]
            if layout == "torchvision":
                bare = torchvision_to_detectron2(str(bare))
            if bare is not None and _RESNET_NAME.match(bare):
                found[bare] = value
        if layout == "Detectron2" and prefix == "backbone.":  # a C4 detector keeps res5 elsewhere
            for name, value in state.items():
                if name.startswith(_C4_RES5) and not name.startswith(_C4_EXTRA_NORM):
                    found[name[len("roi_heads.") :]] = value
        return found, f"ResNet under {layout} names" + (f" behind {prefix!r}" if prefix else "")
    return None


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
        if name.startswith(_C4_RES5) and not name.startswith(_C4_EXTRA_NORM):
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
