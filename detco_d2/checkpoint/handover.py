"""Carry a backbone from any known weight file into a Detectron2 model, or fail loudly."""

import logging
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.utils.file_io import PathManager

from .exporting import AUTHOR, SPEC_KEY
from .input_spec import KEYS, MSRA_SPEC, TORCHVISION_SPEC, InputSpec
from .names import TORCHVISION_PARTS, backbone_slots, describe_resnet
from .reading import read_weight_file, tensors_of
from .report import load_report
from .saving import DurableCheckpointer
from .sources import extract_backbone

logger = logging.getLogger(__name__)

_CAFFE2_NAMES = {"conv1_w", "res2_0_branch2a_w"}  # blobs that every ResNet of Caffe2 has


def _is_caffe2(data: dict[str, Any]) -> bool:
    """Whether a file is Caffe2's: blobs by name, which a detector's file keeps under `blobs`."""
    return _CAFFE2_NAMES <= set(_blobs_of(data))


def _blobs_of(data: dict[str, Any]) -> dict[str, Any]:
    return data["blobs"] if isinstance(data.get("blobs"), dict) else data


def _spec_of(data: dict[str, Any]) -> dict[str, Any]:
    spec = data.get(SPEC_KEY, MSRA_SPEC if _is_caffe2(data) else TORCHVISION_SPEC)
    if not isinstance(spec, dict) or not all(_is_setting(spec[key]) for key in KEYS if key in spec):
        raise ValueError(f"The weights' {SPEC_KEY} is {spec!r:.200}; it must hold settings.")
    return spec


def _is_setting(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, (str, int, float)) for item in items)


def _as_detectron2_reads(data: dict[str, Any], path: str) -> dict[str, Any]:
    """What `DetectionCheckpointer._load_file` would return, had it read the file itself.

    It would do so a second time, and with a plain `pickle.load` for a .pkl.

    Raises:
        ValueError: the model's weights are no dict of tensors.
    """
    if "model" in data:
        loaded = data
    elif "model_state" in data:
        loaded = _of_other_names(data["model_state"], "pycls", without="num_batches_tracked")
    elif path.endswith(".pkl") or _is_caffe2(data):
        loaded = _of_other_names(_blobs_of(data), "Caffe2", without="_momentum")
    else:
        loaded = {"model": data}
    model = loaded["model"] if isinstance(loaded["model"], dict) else {}
    kinds = (torch.Tensor, np.ndarray)
    strange = [n for n, v in model.items() if not isinstance(n, str) or not isinstance(v, kinds)]
    if strange or not model:
        raise ValueError(
            f"{path!r} holds other things than a model's tensors: {strange[:5]!r:.200}."
        )
    return loaded


def _of_other_names(model: Any, author: str, without: str) -> dict[str, Any]:
    if isinstance(model, dict):
        model = {name: value for name, value in model.items() if not str(name).endswith(without)}
    return {"model": model, "__author__": author, "matching_heuristics": True}


def _refuse_nonfinite(tensors: dict[str, torch.Tensor], source: str) -> None:
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
    return _spec_of(read_weight_file(PathManager.get_local_path(path)))


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


def _backbone_of(data: dict[str, Any], path: str) -> Backbone:
    """As :func:`read_backbone`, from the contents of the file."""
    tensors = tensors_of(_blobs_of(data))
    says_settings = SPEC_KEY in data or _is_caffe2(data)
    if data.get("__author__") == AUTHOR:
        return Backbone(tensors, "converted by detco_d2", _spec_of(data), {}, says_settings)
    found = extract_backbone(tensors, data)
    if found is None:
        raise ValueError(
            f"{path!r} has no backbone of a known layout among its {len(tensors)} tensors "
            f"(first names: {sorted(tensors)[:5]})."
        )
    return Backbone(found.tensors, found.source, _spec_of(data), found.unused, says_settings)


def read_backbone(path: str) -> Backbone:
    """Read the backbone of a weight file, and what that file is.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weight_file`; or no backbone in the file.
    """
    return _backbone_of(read_weight_file(path), path)


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


class BackboneCheckpointer(DurableCheckpointer, DetectionCheckpointer):
    """`DetectionCheckpointer` that also reads pretraining checkpoints and SSL weight files.

    A file of whole-model weights loads as Detectron2 always does. Any other file with a known
    backbone is converted in place; then every tensor of the model's backbone must be in it. In
    both cases the weights' input settings must agree with the config.
    """

    def __init__(self, model: Any, save_dir: str = "", *, input_spec: InputSpec, **kwargs: Any):
        super().__init__(model, save_dir, input_spec=input_spec, **kwargs)
        self.input_spec = input_spec

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = read_weight_file(filename)
        tensors = tensors_of(_blobs_of(data))
        if not tensors:
            raise ValueError(f"{filename!r} has no tensors; its keys are {list(data)[:8]!r:.200}.")
        wanted = set(self.model.state_dict())
        is_whole_model = len(wanted & set(tensors)) > len(wanted) / 2
        if not is_whole_model and (
            data.get("__author__") == AUTHOR
            or (not _is_caffe2(data) and extract_backbone(tensors) is not None)
        ):
            backbone, source, spec, *_ = _backbone_of(data, filename)
            self.input_spec.load_state_dict(spec)
            placed = place_backbone(backbone, self.model.state_dict(), f"{filename!r}, {source}")
            return {"model": placed}
        if _is_caffe2(data) or (is_whole_model and SPEC_KEY in data):
            self.input_spec.load_state_dict(_spec_of(data))
        loaded = _as_detectron2_reads(data, filename)
        url = getattr(self, "_parsed_url_during_load", None)  # Detectron2's main takes an option
        if url and parse_qs(url.query).get("matching_heuristics") == ["True"]:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        # Some Caffe2 files fold BN into scale and bias, and so have no running statistics.
        folded = checkpoint.get("__author__") == "Caffe2" and not any(
            name.endswith(("_rm", "_running_mean")) for name in checkpoint["model"]
        )
        try:
            incompatible = super()._load_model(checkpoint)
        except (AssertionError, LookupError) as error:  # of Detectron2's matching by name
            raise ValueError(f"The weights' names fit no part of the model: {error!r}") from error
        state = self.model.state_dict()
        fresh = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        loaded = {name: tensor for name, tensor in state.items() if name not in fresh}
        _refuse_nonfinite(loaded, "the weights")
        expected = {target for targets in backbone_slots(state).values() for target in targets}
        absent = [key for key in fresh & expected if not (folded and "running_" in key)]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(expected)} backbone tensors did not load and would start "
                "at random:\n  " + "\n  ".join(sorted(absent))
            )
        return incompatible


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
    _refuse_nonfinite(backbone, repr(source))
    model = _model_of(backbone)
    if model is None:
        return f"{len(backbone)} backbone tensors (no ResNet, so not checked against one)."
    depth, wanted = model
    state = {f"backbone.{name}": tensor for name, tensor in wanted.items()}
    placed = place_backbone(backbone, state, repr(source))
    return f"{len(placed)} of {len(placed)} backbone tensors of ResNet-{depth} matched."
