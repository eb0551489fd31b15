"""One backbone: read from a weight file of any known layout, and placed in a model whole."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from .input_spec import TORCHVISION_SPEC, spec_of
from .names import TORCHVISION_PARTS, backbone_slots, describe_resnet, differences
from .reading import describe_keys, read_weight_file, split_choice, tensors_of
from .report import load_report, misfits
from .sources import locate_backbone

logger = logging.getLogger(__name__)

AUTHOR = "detco_d2"  # of a converted file


@dataclass(frozen=True)
class Backbone:
    """A backbone as a weight file gives it.

    Attributes:
        tensors: by Detectron2 name; what Detectron2 has no name for keeps its own.
        path: of the file.
        source: the layout that was recognised, in words.
        own_spec: the input settings, by config key, that the file says; None: it has none.
        unused: the number of other tensors in the file by the beginning of their names.
    """

    tensors: dict[str, torch.Tensor]
    path: str
    source: str
    own_spec: dict[str, Any] | None
    unused: dict[str, int]

    @property
    def spec(self) -> dict[str, Any]:
        """The input settings; torchvision's where the file does not say."""
        return {**TORCHVISION_SPEC, **(self.own_spec or {})}

    def __str__(self) -> str:
        return f"{self.path!r}, {self.source}"


def read_backbone(path: str) -> Backbone:
    """Read the backbone of a weight file, also of one that Detectron2 downloads.

    Args:
        path: of the file; `FILE#encoder` where it has several encoders.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weight_file`; or no backbone in the file.
    """
    path, choice = split_choice(path)
    path = PathManager.get_local_path(path)
    data = read_weight_file(path)
    tensors = tensors_of(data)
    backbone = find_backbone(tensors, data, path, choice)
    if backbone is None:
        raise ValueError(
            f"{path!r} has no backbone of a known layout among its {len(tensors)} tensors "
            f"(first names: {sorted(tensors)[:5]}); {describe_keys(data)}."
        )
    return backbone


def find_backbone(
    tensors: dict[str, torch.Tensor], data: dict[str, Any], path: str, choice: str = ""
) -> Backbone | None:
    """The backbone in a weight file's tensors and other data; None: none of a known layout.

    Raises:
        ValueError: what stands where the file's settings do is none; or see
            :func:`locate_backbone`.
    """
    author = data.get("__author__", data.get("author"))
    if author == AUTHOR:
        return Backbone(tensors, path, f"converted by {AUTHOR}", spec_of(data, tensors), {})
    try:
        located = locate_backbone(tensors, choice)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}.") from error
    if located is None:
        return None
    names, source, unused = located
    if isinstance(author, str):
        source += f"; written by {author!r:.40}"
    found = {new: tensors[old] for new, old in names.items()}
    return Backbone(found, path, source, spec_of(data, tensors), unused)


def place_backbone(
    backbone: Backbone, model_state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors under the names of a model, one for each tensor of the model's backbone.

    Raises:
        ValueError: a tensor of the model's backbone is missing, or of another shape, or the weights
            are of a larger backbone; with the load report.
    """
    slots = backbone_slots(model_state)
    if not slots:
        raise ValueError(f"The model has no backbone that could be that of {backbone}.")
    wanted = {name: model_state[targets[0]] for name, targets in slots.items()}
    matched = len(slots) - len(misfits(backbone.tensors, wanted))
    if matched < len(slots):
        shape = describe_resnet(backbone.tensors)
        resnet = f" (those of MODEL.RESNETS {shape})" if shape else ""
        causes = differences(backbone.tensors, wanted) or ["It is cut, or of another network."]
        raise ValueError(
            f"Only {matched} of the model's {len(slots)} backbone tensors are in "
            f"{backbone}{resnet}:\n{load_report(backbone.tensors, wanted, backbone.unused)}\n"
            f"The backbone would start at random. {' '.join(causes)}"
        )
    unused = sorted(backbone.tensors.keys() - slots.keys())
    parts = {name.partition(".")[0] for name in slots}.union(TORCHVISION_PARTS)
    if foreign := [name for name in unused if name.partition(".")[0] in parts]:
        raise ValueError(
            f"{backbone} has {len(foreign)} tensors in the midst of its backbone that the model "
            f"has not, such as {foreign[:3]}: it is of another network, or deeper. "
            + " ".join(differences(backbone.tensors, wanted))
        )
    logger.info("Backbone: %d of %d tensors loaded from %s.", matched, len(slots), backbone)
    if unused:
        logger.warning("%d tensors of the weights have no place here: %s", len(unused), unused[:8])
    return {target: backbone.tensors[name] for name in slots for target in slots[name]}


def refuse_nonfinite(tensors: Mapping[str, torch.Tensor], source: object) -> None:
    """
    Raises:
        ValueError: a tensor holds NaN or infinity; lists them.
    """
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} tensors of {source} hold NaN or infinity: {sorted(bad)[:8]}.")
