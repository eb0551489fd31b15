"""Where the backbone is in a weight file of some layout, told by the names of its tensors."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

from .names import PARTS, PRETRAINING_PREFIX, TO_DETECTRON2, TORCHVISION_PARTS, is_c4_res5

# Where a file has several encoders: which are momentum copies, and which are surely not.
_TRAINED = re.compile(r"query|student|anchor|online")
_MOMENTUM_COPY = re.compile(
    r"encoder_k|key_encoder|key_backbone|momentum|teacher|target|shadow|average|"
    r"(?<![a-z])(ema|swa)(?![a-z])"
)
_HEAD = "stem.fc."  # converters rename all but layers to stem.*, also the classifier or MLP
# The children of torchvision's (and timm's) ResNet by their place in it.
_CHILDREN = dict(zip("014567", TORCHVISION_PARTS))
_CAFFE2_NAMES = {"conv1_w", "res2_0_branch2a_w"}  # blobs that every ResNet of Caffe2 has


def is_caffe2(names: Iterable[str]) -> bool:
    """Whether these are the names of a file of Caffe2, such as MSRA's ResNets."""
    return _CAFFE2_NAMES.issubset(names)


def _of_detectron2(name: str) -> str | None:
    is_part = name.partition(".")[0] in PARTS and not name.startswith(_HEAD)
    return name if is_part else None


def _of_torchvision(name: str) -> str | None:
    """Parts of a variant that Detectron2 has no name for keep theirs, and are refused by it."""
    if name.partition(".")[0] not in TORCHVISION_PARTS:
        return None
    return TO_DETECTRON2.get(name, name)


def _of_sequential(name: str) -> str | None:
    child, _, rest = name.partition(".")
    return _of_torchvision(f"{_CHILDREN[child]}.{rest}") if child in _CHILDREN else None


def _of_caffe2(name: str) -> str | None:
    (renamed,) = convert_basic_c2_names([name])
    return None if renamed == "stem.conv1.bias" else _of_detectron2(renamed)


# By whose names they are: a name that every ResNet of the layout has, by which its prefix is found,
# and what gives Detectron2's name of one (None: not of the backbone).
_LAYOUTS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "torchvision and timm": ("layer1.0.conv1.weight", _of_torchvision),
    "Detectron2": ("res2.0.conv1.weight", _of_detectron2),
    "an nn.Sequential of its children": ("4.0.conv1.weight", _of_sequential),
    "Caffe2 (MSRA)": ("res2_0_branch2a_w", _of_caffe2),
}


def locate_backbone(
    tensors: Mapping[str, torch.Tensor], choice: str = ""
) -> tuple[dict[str, str], str, dict[str, int]] | None:
    """Find the backbone among a file's tensors.

    Knows pretraining checkpoints of this project, and ResNets under the names of torchvision, of
    its children in a Sequential, of Detectron2 or of Caffe2, behind any prefix (`backbone.`,
    `encoder_q.`, `encoder_q.0.`, ...). The trained encoder is taken rather than its momentum copy.

    Args:
        choice: the beginning of the names of the encoder to take, see :func:`split_choice`.

    Returns:
        the file's name of each backbone tensor by Detectron2's; the layout in words; and the
        number of other tensors by the beginning of their names. None if no layout is known.

    Raises:
        ValueError: several encoders, none of which is surely the one; or none of that choice.
    """
    names = [name for name in tensors if not name.endswith("num_batches_tracked")]
    if ours := [name for name in names if name.startswith(PRETRAINING_PREFIX) and not choice]:
        found = {name.removeprefix(PRETRAINING_PREFIX): name for name in ours}
        words = "DetCo pretraining checkpoint of this project (query encoder)"
        return found, *_describe(names, found, PRETRAINING_PREFIX, words)
    for library, (anchor, rename) in _LAYOUTS.items():
        prefix = _find_prefix(tensors, anchor, choice)
        if prefix is None:
            continue
        behind = [name for name in names if name.startswith(prefix)]
        renamed = {rename(name[len(prefix) :]): name for name in behind}
        found = {new: name for new, name in renamed.items() if new}
        if library == "Detectron2" and prefix == "backbone.":
            found |= {n.removeprefix("roi_heads."): n for n in names if is_c4_res5(n)}
        words = f"ResNet under the names of {library}" + (f", behind {prefix!r}" if prefix else "")
        return found, *_describe(names, found, prefix, words)
    return None


def _find_prefix(tensors: Mapping[str, torch.Tensor], anchor: str, choice: str) -> str | None:
    """What stands before the trained encoder's names; None if the anchor is not there."""
    prefixes = [name.removesuffix(anchor) for name in tensors if name.endswith(anchor)]
    whole = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if choice:
        asked = choice.strip(".")
        below = [prefix for prefix in whole if prefix.startswith(f"{asked}.")]
        found = [prefix for prefix in whole if prefix.strip(".") == asked] or below
    else:
        own = [prefix for prefix in whole if not _MOMENTUM_COPY.search(prefix)]
        # lightly has a student_backbone beside a backbone that follows it
        found = [prefix for prefix in own if _TRAINED.search(prefix)] or own or whole
    first = min(found, key=len, default=None)
    if first is None and not whole:
        return None
    if first is None or not all(_are_same(tensors, first, prefix) for prefix in found):
        named = ", ".join(f"#{prefix.rstrip('.') or '.'}" for prefix in sorted(set(whole)))
        raise ValueError(
            f"the file has {len(whole)} encoders; say which, by one of these behind its name: "
            f"{named}"
        )
    return first


def _are_same(tensors: Mapping[str, torch.Tensor], first: str, second: str) -> bool:
    """Whether two encoders are the same one, under two names."""
    pairs = (
        (tensors[name], tensors.get(second + name.removeprefix(first)))
        for name in tensors
        if name.startswith(first) and name.endswith("conv1.weight")
    )
    return all(b is None or torch.equal(a, b) for a, b in pairs)


def _describe(
    names: list[str], found: dict[str, str], prefix: str, words: str
) -> tuple[str, dict[str, int]]:
    """The layout in words, and the number of names that are left by their beginning."""
    taken = set(found.values())
    others = [name for name in names if name not in taken]
    if copies := sorted({_beginning(name) for name in others if _MOMENTUM_COPY.search(name)}):
        words += f"; its momentum copy ({', '.join(copies)}) is left"
    return words, dict(sorted(Counter(_beginning(name, prefix) for name in others).items()))


def _beginning(name: str, prefix: str = "") -> str:
    """The first part of a name, behind the backbone's prefix where it has that."""
    prefix = prefix if name.startswith(prefix) else ""
    first, dot, _ = name[len(prefix) :].partition(".")
    return f"{prefix}{first}.*" if dot else name
