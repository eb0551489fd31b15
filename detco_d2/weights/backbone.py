"""Read a backbone from any known weight file, and place it in a model, or fail loudly."""

import logging
from typing import Any, NamedTuple

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.utils.file_io import PathManager

from ..config import MSRA_SPEC
from .export import AUTHOR, SPEC_KEY
from .input_spec import KEYS, TORCHVISION_SPEC
from .names import TORCHVISION_PARTS, backbone_slots, describe_resnet
from .reading import read_weight_file, tensors_of
from .report import load_report
from .sources import extract_backbone

logger = logging.getLogger(__name__)

_CAFFE2_NAMES = {"conv1_w", "res2_0_branch2a_w"}  # blobs that every ResNet of Caffe2 has


def is_caffe2(data: dict[str, Any]) -> bool:
    """Whether a file is Caffe2's: blobs by name, which a detector's file keeps under `blobs`."""
    return _CAFFE2_NAMES <= set(blobs_of(data))


def blobs_of(data: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a Caffe2 file by name, wherever it keeps them; of another, its contents."""
    return data["blobs"] if isinstance(data.get("blobs"), dict) else data


def spec_of(data: dict[str, Any]) -> dict[str, Any]:
    """As :func:`input_spec_of`, from the contents of the file."""
    spec = data.get(SPEC_KEY, MSRA_SPEC if is_caffe2(data) else TORCHVISION_SPEC)
    if not isinstance(spec, dict) or not all(_is_setting(spec[key]) for key in KEYS if key in spec):
        raise ValueError(f"The weights' {SPEC_KEY} is {spec!r:.200}; it must hold settings.")
    return spec


def _is_setting(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, (str, int, float)) for item in items)


def refuse_nonfinite(tensors: dict[str, torch.Tensor], source: str) -> None:
    """
    Raises:
        ValueError: a tensor holds NaN or infinity; lists them.
    """
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} tensors of {source} hold NaN or infinity: {sorted(bad)[:8]}.")


def input_spec_of(path: str) -> dict[str, Any]:
    """The input settings, by config key, that the weights of a file were trained with.

    Args:
        path: a weight file, also one that Detectron2 downloads (`detectron2://...`).

    Returns:
        what the file says itself (a checkpoint or a converted file of this project), MSRA's
        settings for a file of Caffe2, torchvision's for all others.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weight_file`.
    """
    return spec_of(read_weight_file(PathManager.get_local_path(path)))


class Backbone(NamedTuple):
    """A backbone as a file gives it.

    Attributes:
        tensors: by Detectron2 name.
        source: the format that was recognised, in words.
        spec: its input settings, by config key.
        unused: the number of other tensors in the file by the beginning of their names.
        says_settings: whether the file has input settings, which are assumed otherwise.
    """

    tensors: dict[str, torch.Tensor]
    source: str
    spec: dict[str, Any]
    unused: dict[str, int]
    says_settings: bool


def backbone_of(data: dict[str, Any], path: str) -> Backbone:
    """As :func:`read_backbone`, from the contents of the file."""
    tensors = tensors_of(blobs_of(data))
    says_settings = SPEC_KEY in data or is_caffe2(data)
    if data.get("__author__") == AUTHOR:
        return Backbone(tensors, "converted by detco_d2", spec_of(data), {}, says_settings)
    found = extract_backbone(tensors, data)
    if found is None:
        raise ValueError(
            f"{path!r} has no backbone of a known layout among its {len(tensors)} tensors "
            f"(first names: {sorted(tensors)[:5]})."
        )
    return Backbone(found.tensors, found.source, spec_of(data), found.unused, says_settings)


def read_backbone(path: str) -> Backbone:
    """Read the backbone of a weight file, and what that file is.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weight_file`; or no backbone in the file.
    """
    return backbone_of(read_weight_file(path), path)


def load_backbone(path: str) -> tuple[dict[str, torch.Tensor], str, dict[str, Any]]:
    """Read the backbone of a weight file.

    Returns:
        its tensors under Detectron2 names, the format recognised, and its input settings
        (torchvision's where the file does not say).

    Raises:
        FileNotFoundError, ValueError: see :func:`read_backbone`.
    """
    return read_backbone(path)[:3]


def place_backbone(
    backbone: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Rename a backbone's tensors to where they stand in a model.

    Args:
        backbone: tensors under Detectron2 backbone names.
        model_state: the model's state dict.
        source: what to call the weights in messages.

    Returns:
        tensors under the model's names, one for each tensor of the model's backbone.

    Raises:
        ValueError: a backbone tensor of the model is missing in the weights, or has another
            shape there; lists them all.
    """
    slots = backbone_slots(model_state)
    placed: dict[str, torch.Tensor] = {}
    problems = []
    for name, targets in sorted(slots.items()):
        for target in targets:
            wanted = tuple(model_state[target].shape)
            if name not in backbone:
                problems.append(f"{target} {wanted}: missing")
            elif tuple(backbone[name].shape) != wanted:
                problems.append(f"{target} {wanted}: {tuple(backbone[name].shape)} in the weights")
            else:
                placed[target] = backbone[name]
    matched = sum(all(target in placed for target in targets) for targets in slots.values())
    if problems or not slots:
        shape = describe_resnet(backbone)
        resnet = f" (those of MODEL.RESNETS {shape})" if shape else ""
        raise ValueError(
            f"Only {matched} of the model's {len(slots)} backbone tensors are in {source}{resnet}:"
            + "".join(f"\n  {problem}" for problem in problems)
            + "\nThe backbone would start at random. Use a config with the depth and norm of the "
            "weights (MODEL.RESNETS.DEPTH, MODEL.RESNETS.NORM)."
        )
    unused = sorted(set(backbone) - set(slots))
    parts = {name.partition(".")[0] for name in slots} | TORCHVISION_PARTS
    foreign = [name for name in unused if name.partition(".")[0] in parts]
    if foreign:
        raise ValueError(
            f"{source} has {len(foreign)} tensors in the midst of its backbone that the model has "
            f"not, such as {foreign[:3]}: it is of another network, or deeper."
        )
    logger.info("Backbone: %d of %d tensors loaded from %s.", matched, len(slots), source)
    if unused:
        logger.warning("%d tensors of the weights have no place here: %s", len(unused), unused[:8])
    return placed


def build_resnet(
    shape: dict[str, int], norm: str, stages: list[str], stride_in_1x1: bool = False
) -> Any:
    """Detectron2's ResNet of some MODEL.RESNETS keys, with the outputs of these stages."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = stages
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    if shape["DEPTH"] in (18, 34):
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in shape.items():
        cfg.MODEL.RESNETS[key] = value
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def norm_of(backbone: dict[str, torch.Tensor]) -> str:
    """The norm that a ResNet's tensors are of."""
    return "BN" if "stem.conv1.norm.running_mean" in backbone else "GN"


def _model_of(backbone: dict[str, torch.Tensor]) -> tuple[int, dict[str, torch.Tensor]] | None:
    """The depth and the state of the ResNet that these tensors should fill.

    Returns:
        None when they are of no ResNet.

    Raises:
        ValueError: a ResNet that Detectron2 cannot build.
    """
    shape = describe_resnet(backbone)
    if shape is None:
        if "res2.0.conv1.weight" in backbone:
            raise ValueError(
                "The weights are of a ResNet that Detectron2 cannot build: it has depths 18, 34, "
                "50, 101 and 152, and basic blocks of 64 channels only."
            )
        return None
    with torch.device("meta"):  # shapes are all that is asked for
        model = build_resnet(shape, norm_of(backbone), ["res5"])
    state = model.state_dict().items()
    return shape["DEPTH"], {n: t for n, t in state if not n.endswith("num_batches_tracked")}


def report_backbone(backbone: Backbone) -> str:
    """How much of the ResNet of its depth and width was found: a table, see :func:`load_report`.

    Raises:
        ValueError: a ResNet that Detectron2 cannot build.
    """
    model = _model_of(backbone.tensors)
    if model is None:
        return f"{len(backbone.tensors)} backbone tensors (no ResNet, so not checked against one)."
    depth, wanted = model
    table, coverage = load_report(backbone.tensors, wanted, backbone.unused)
    return f"{table}\nCoverage of ResNet-{depth}: {coverage:.1f} %"


def check_complete(backbone: dict[str, torch.Tensor], source: str) -> str:
    """Check a ResNet backbone's tensors against the ResNet of its depth and width.

    Returns:
        a sentence that says how many tensors matched.

    Raises:
        ValueError: a tensor is missing, of another shape or of another network; lists them all.
    """
    refuse_nonfinite(backbone, repr(source))
    model = _model_of(backbone)
    if model is None:
        return f"{len(backbone)} backbone tensors (no ResNet, so not checked against one)."
    depth, wanted = model
    state = {f"backbone.{name}": tensor for name, tensor in wanted.items()}
    placed = place_backbone(backbone, state, repr(source))
    return f"{len(placed)} of {len(placed)} backbone tensors of ResNet-{depth} matched."
