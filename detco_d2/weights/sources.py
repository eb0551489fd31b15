"""Which project wrote a weight file, told by its keys, and where its backbone is in there."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

from .names import (
    C4_EXTRA_NORM,
    C4_RES5,
    PARTS,
    PRETRAINING_PREFIX,
    TORCHVISION_PARTS,
    children_to_torchvision,
    torchvision_to_detectron2,
)

# A name that every ResNet of the layout has, by which its prefix is found.
_ANCHORS = {
    "torchvision": "layer1.0.conv1.weight",
    "Detectron2": "res2.0.conv1.weight",
    "Sequential": "4.0.conv1.weight",
    "Caffe2": "res2_0_branch2a_w",
}
# Where a file has several encoders: which are momentum copies, and which are surely not.
_TRAINED = re.compile(r"query|student|anchor")
_MOMENTUM_COPY = re.compile(r"encoder_k|key_encoder|key_backbone|momentum|teacher|target|ema\b")
_HEAD = "stem.fc."  # converters rename all but layers to stem.*, also the classifier or MLP


class Extract(NamedTuple):
    """A backbone as it was found in a file.

    Attributes:
        tensors: by Detectron2 name; those of a variant that has no such name keep their own.
        source: the format that was recognised, in words.
        unused: the number of other tensors in the file by the beginning of their names.
    """

    tensors: dict[str, Any]
    source: str
    unused: dict[str, int]


def extract_backbone(
    state: Mapping[str, Any], around: Mapping[str, Any] | None = None
) -> Extract | None:
    """Take a backbone out of the weights of some format, under Detectron2's backbone names.

    Knows pretraining checkpoints of this project, and ResNets under the names of torchvision, of
    its children in a Sequential, of Detectron2 or of Caffe2, behind any prefix (`module.`,
    `backbone.`, `encoder_q.`, `encoder_q.0.`, ...). The trained encoder is taken, never its
    momentum copy.

    Args:
        state: tensors by name.
        around: what else is in the file, by key, which helps to tell who wrote it.

    Returns:
        None when there is no backbone of a known layout.
    """
    around = around or {}
    for layout, prefix in _places(state):
        found = _collect(state, layout, prefix)
        taken = set(found.values())
        tensors = {new: state[old] for new, old in found.items()}
        source = _describe(state, around, layout, prefix)
        others = [name for name in state if name not in taken and not _is_counter(name)]
        copies = sorted({_group(name) for name in others if _MOMENTUM_COPY.search(name)})
        if copies:
            source += f"; its momentum copy ({', '.join(copies)}) is left"
        unused = Counter(_group(name, prefix) for name in others)
        return Extract(tensors, source, dict(sorted(unused.items())))
    return None


def _places(state: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if any(name.startswith(PRETRAINING_PREFIX) for name in state):
        yield "ours", PRETRAINING_PREFIX
    for layout, anchor in _ANCHORS.items():
        prefixes = [name[: -len(anchor)] for name in state if name.endswith(anchor)]
        whole = [p for p in prefixes if not p or p.endswith(".")]
        trained = [p for p in whole if not _MOMENTUM_COPY.search(p)]
        if trained:
            # lightly has a student_backbone beside a backbone that follows it
            yield layout, min(trained, key=lambda p: (not _TRAINED.search(p), len(p)))


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _group(name: str, prefix: str = "") -> str:
    """What to count a tensor under: the first part of its name, behind the backbone's prefix."""
    prefix = prefix if name.startswith(prefix) else ""
    first, dot, _ = name[len(prefix) :].partition(".")
    return f"{prefix}{first}.*" if dot else name


def _collect(state: Mapping[str, Any], layout: str, prefix: str) -> dict[str, str]:
    """The file's names of the backbone's tensors, by their new names."""
    names = [name for name in state if name.startswith(prefix) and not _is_counter(name)]
    if layout == "ours":
        return {name[len(prefix) :]: name for name in names}
    if layout == "Caffe2":
        renamed = zip(convert_basic_c2_names([name[len(prefix) :] for name in names]), names)
        return {new: old for new, old in renamed if _is_part(new) and new != "stem.conv1.bias"}
    found = {}
    for name in names:
        bare = name[len(prefix) :]
        if layout == "Sequential":
            bare = children_to_torchvision(bare) or ""
        if layout == "Detectron2":
            if _is_part(bare):
                found[bare] = name
        elif bare.partition(".")[0] in TORCHVISION_PARTS:
            found[torchvision_to_detectron2(bare) or bare] = name
    if layout == "Detectron2" and prefix == "backbone.":  # a C4 detector keeps res5 elsewhere
        for name in state:
            is_res5 = name.startswith(C4_RES5) and not name.startswith(C4_EXTRA_NORM)
            if is_res5 and not _is_counter(name):
                found[name.removeprefix("roi_heads.")] = name
    return found


def _is_part(name: str) -> bool:
    return name.partition(".")[0] in PARTS and not name.startswith(_HEAD)


def _describe(state: Mapping[str, Any], around: Mapping[str, Any], layout: str, prefix: str) -> str:
    """The format in words."""
    if layout == "ours":
        return "DetCo pretraining checkpoint of this project (query encoder)"
    if layout == "Caffe2":
        return "ResNet of Caffe2 (MSRA)"
    behind = f", behind {prefix!r}" if prefix else ""
    author = around.get("__author__", around.get("author"))
    said = f", written by {author!r:.40}" if isinstance(author, str) else ""
    if layout == "Detectron2":
        kinds = {"": "backbone", "backbone.bottom_up.": "detector with FPN"}
        kind = kinds.get(prefix, "detector" if prefix == "backbone." else "model")
        if prefix == "backbone." and any(name.startswith(C4_RES5) for name in state):
            kind = "detector of the C4 family"
        return f"Detectron2 {kind}{said}{behind}"
    project = _project(state, around, layout, prefix)
    return f"{project}{said}{behind}"


def _project(state: Mapping[str, Any], around: Mapping[str, Any], layout: str, prefix: str) -> str:
    heads = {name.partition(".")[0] for name in state}
    lightning = "pytorch-lightning_version" in around
    if layout == "Sequential":
        return "lightly (a ResNet's children in a Sequential)"
    if prefix.endswith("_feature_blocks."):
        return "VISSL"
    if prefix == "encoder_q.":
        return "MoCo v2" if "encoder_q.fc.2.weight" in state else "MoCo v1"
    if prefix == "base_encoder.":
        return "MoCo v3"
    if lightning and heads & {"projection_head", "prediction_head"}:
        return "lightly"
    if prefix == "backbone." and "classifier" in heads:
        return "solo-learn"
    if prefix in ("backbone.", "encoder_q.0.") and ("meta" in around or heads & {"neck", "head"}):
        return "OpenSelfSup, DenseCL or MMSelfSup"
    if not prefix:
        return "ResNet under the names of torchvision and timm"
    return "ResNet under torchvision's names" + (
        " from a Lightning checkpoint" if lightning else ""
    )
