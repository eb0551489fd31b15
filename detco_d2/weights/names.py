"""Which tensor of one format is which tensor of another; pure functions over names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

PRETRAINING_PREFIX = "query_encoder.backbone."
# Where a backbone can stand in a model: a detector with and without FPN, or DetCo itself.
_MODEL_PREFIXES = ("backbone.bottom_up.", "backbone.", PRETRAINING_PREFIX, "key_encoder.backbone.")
PARTS = ("stem", "res2", "res3", "res4", "res5")
TORCHVISION_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_STEM = "stem.conv1.weight"
_MOST_BLOCKS = 36
_WIDEST = 4096  # channels in res2; wider ones are no ResNet's, and a model of them no size to build


def _modules() -> Iterator[tuple[str, str]]:
    """The layers of the largest ResNet as torchvision and as Detectron2 name them."""
    yield "conv1", "stem.conv1"
    yield "bn1", "stem.conv1.norm"
    for stage in (1, 2, 3, 4):
        for block in range(_MOST_BLOCKS):
            theirs, ours = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
            for i in (1, 2, 3):
                yield f"{theirs}.conv{i}", f"{ours}.conv{i}"
                yield f"{theirs}.bn{i}", f"{ours}.conv{i}.norm"
            yield f"{theirs}.downsample.0", f"{ours}.shortcut"
            yield f"{theirs}.downsample.1", f"{ours}.shortcut.norm"


# Detectron2's names by torchvision's (and timm's, MoCo's, ...). What has no place in Detectron2's
# ResNet is not in it: fc, MLP, counters, parts of other networks.
TO_DETECTRON2 = {
    f"{theirs}.{tensor}": f"{ours}.{tensor}"
    for theirs, ours in _modules()
    for tensor in ("weight", "bias", "running_mean", "running_var")
}
TO_TORCHVISION = {ours: theirs for theirs, ours in TO_DETECTRON2.items()}


def is_c4_res5(name: str) -> bool:
    """Whether this is of the res5 that a C4 detector keeps in its ROI heads, without extra norm."""
    return name.startswith("roi_heads.res5.") and not name.startswith("roi_heads.res5.norm.")


def backbone_slots(model_names: Iterable[str]) -> dict[str, list[str]]:
    """Where each backbone tensor stands in a model, told by all names of its state dict.

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
        if is_c4_res5(name):
            prefix = "roi_heads."
        if prefix is not None:
            slots.setdefault(name[len(prefix) :], []).append(name)
    return slots


def describe_resnet(backbone: dict[str, Any]) -> dict[str, int] | None:
    """The MODEL.RESNETS keys of the ResNet or ResNeXt that these tensors are nearest to.

    They are by Detectron2 name; None: of no ResNet. The first block of a stage is enough to tell
    its kind: a file with missing blocks is taken for the smallest ResNet that could contain it.
    """
    first: tuple[int, ...] = getattr(backbone.get("res2.0.conv1.weight"), "shape", ())
    second: tuple[int, ...] = getattr(backbone.get("res2.0.conv2.weight"), "shape", first)
    bottleneck = "res2.0.conv3.weight" in backbone or "res3.0.conv3.weight" in backbone
    blocks = [0, 0, 0, 0]
    for name in backbone:
        if match := re.match(r"res([2345])\.(\d+)\.", name):
            stage = int(match[1]) - 2
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    fitting = [
        depth
        for (is_bottleneck, size), depth in _DEPTHS.items()
        if is_bottleneck == bottleneck and all(a <= b for a, b in zip(blocks, size))
    ]
    if len(first) != 4 or not 0 < first[0] <= _WIDEST or not fitting:
        return None
    width = first[0]
    if not bottleneck:  # Detectron2 has them in one width
        return {"DEPTH": min(fitting), "RES2_OUT_CHANNELS": width} if width == 64 else None
    if len(second) != 4 or second[1] == 0 or width % second[1]:
        return None
    groups = width // second[1]
    return {"DEPTH": min(fitting), "NUM_GROUPS": groups, "WIDTH_PER_GROUP": second[1]}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What is other in a file's ResNet than in a model's, both by Detectron2 name; sentences."""
    said = []
    theirs, ours = (tuple(getattr(x.get(_STEM), "shape", ())) for x in (found, wanted))
    for axes, what in (
        (slice(0, 1), "output channels"),
        (slice(1, 2), "input channels (1: trained on grey images)"),
        (slice(2, 4), "pixels (3 x 3: made for small images such as CIFAR's)"),
    ):
        if len(theirs) == len(ours) == 4 and theirs[axes] != ours[axes]:
            sizes = [" x ".join(map(str, shape[axes])) for shape in (theirs, ours)]
            said.append(f"Its first convolution has {sizes[0]} {what}, the model's {sizes[1]}.")
    norms = _norm(found), _norm(wanted)
    if norms[0] != norms[1]:
        said.append(f"Its norm is {norms[0]}, the model's {norms[1]}: see MODEL.RESNETS.NORM.")
    its, own = describe_resnet({**found}) or {}, describe_resnet({**wanted}) or {}
    for key in its.keys() & own.keys():
        if its[key] != own[key]:
            said.append(f"Its MODEL.RESNETS.{key} is {its[key]}, the model's {own[key]}.")
    return said


def _norm(names: Iterable[str]) -> str:
    if any(name.endswith("running_mean") for name in names):
        return "batch norm"
    if any(name.endswith("norm.weight") for name in names):
        return "GN, or batch norm that keeps no running statistics"
    return "none, or folded into the convolutions"
