"""Detectron2's checkpointer, which also takes a backbone from any known weight file."""

from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer

from .backbone import backbone_of, blobs_of, is_caffe2, place_backbone, refuse_nonfinite, spec_of
from .export import AUTHOR, SPEC_KEY
from .input_spec import InputSpec
from .names import backbone_slots
from .reading import read_weight_file, tensors_of
from .saving import DurableCheckpointer
from .sources import extract_backbone


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
        tensors = tensors_of(blobs_of(data))
        if not tensors:
            raise ValueError(f"{filename!r} has no tensors; its keys are {list(data)[:8]!r:.200}.")
        wanted = set(self.model.state_dict())
        is_whole_model = len(wanted & set(tensors)) > len(wanted) / 2
        if not is_whole_model and (
            data.get("__author__") == AUTHOR
            or (not is_caffe2(data) and extract_backbone(tensors) is not None)
        ):
            backbone, source, spec, *_ = backbone_of(data, filename)
            self.input_spec.load_state_dict(spec)
            placed = place_backbone(backbone, self.model.state_dict(), f"{filename!r}, {source}")
            return {"model": placed}
        if is_caffe2(data) or (is_whole_model and SPEC_KEY in data):
            self.input_spec.load_state_dict(spec_of(data))
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
        refuse_nonfinite(loaded, "the weights")
        expected = {target for targets in backbone_slots(state).values() for target in targets}
        absent = [key for key in fresh & expected if not (folded and "running_" in key)]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(expected)} backbone tensors did not load and would start "
                "at random:\n  " + "\n  ".join(sorted(absent))
            )
        return incompatible


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
    elif path.endswith(".pkl") or is_caffe2(data):
        loaded = _of_other_names(blobs_of(data), "Caffe2", without="_momentum")
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
