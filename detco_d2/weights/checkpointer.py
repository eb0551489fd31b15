"""Detectron2's checkpointer, which also takes a backbone from any known weight file."""

import re
from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .backbone import find_backbone, place_backbone, refuse_nonfinite
from .input_spec import InputSpec, spec_of
from .names import backbone_slots
from .reading import describe_keys, read_weight_file, split_choice, tensors_of
from .saving import DurableCheckpointer
from .sources import is_caffe2

# A tensor of a stage of the backbone of a model.
_BLOCK = re.compile(r"(backbone\.(bottom_up\.)?)?res[2-5]\.\d+\.(?!.*num_batches_tracked)")


class BackboneCheckpointer(DurableCheckpointer, DetectionCheckpointer):
    """`DetectionCheckpointer` that also reads pretraining checkpoints and SSL weight files.

    A file of whole-model weights loads as Detectron2 always does, and so does one of Caffe2. Of any
    other file with a known backbone that is taken; then every tensor of the model's backbone must
    be in it. In all cases the weights' input settings must agree with the config.
    """

    def __init__(
        self, *args: Any, input_spec: InputSpec, complete: bool = False, **kwargs: Any
    ) -> None:
        """Load the model's backbone at least, or with `complete` every tensor of the model."""
        super().__init__(*args, input_spec=input_spec, **kwargs)
        self.input_spec = input_spec
        self.complete = complete
        self._choice = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, or of `FILE#encoder` that encoder."""
        path, self._choice = split_choice(path or "")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = read_weight_file(filename)
        state = self.model.state_dict()
        tensors = tensors_of(data, kept=state)
        if not tensors:
            raise ValueError(f"{filename!r} has no tensors; {describe_keys(data)}.")
        is_whole_model = len(state.keys() & tensors.keys()) > len(state) / 2 and not self._choice
        if not is_whole_model and not is_caffe2(tensors):
            if backbone := find_backbone(tensors, data, filename, self._choice):
                self.input_spec.load_state_dict(backbone.spec)
                return {"model": place_backbone(backbone, state)}
        self.input_spec.load_state_dict(spec_of(data, tensors) or {})
        loaded = _as_detectron2_reads(tensors, data, filename)
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
        if "queue.features" in fresh:  # of another length: it holds random vectors
            self.model.queue.num_enqueued.zero_()
        refuse_nonfinite({key: state[key] for key in state if key not in fresh}, "the weights")
        if deeper := [name for name in incompatible.unexpected_keys if _BLOCK.match(name)]:
            raise ValueError(
                f"{len(deeper)} tensors of the weights' backbone have no place in the model, such "
                f"as {sorted(deeper)[:3]}: they are of a deeper ResNet. See MODEL.RESNETS.DEPTH."
            )
        absent = sorted(name for name in fresh if not name.endswith("num_batches_tracked"))
        if self.complete and absent:
            raise ValueError(
                f"The weights lack {len(absent)} of the model's {len(state)} tensors, or have them "
                f"in another shape, such as {absent[:4]}. An evaluation needs all of them: set "
                "MODEL.WEIGHTS to a model_final.pth of train_net.py with as many classes, or pass "
                "--resume."
            )
        expected = {target for targets in backbone_slots(state).values() for target in targets}
        if absent := [key for key in fresh & expected if not (folded and "running_" in key)]:
            raise ValueError(
                f"{len(absent)} of {len(expected)} backbone tensors did not load and would start "
                "at random:\n  " + "\n  ".join(sorted(absent))
            )
        return incompatible


def _as_detectron2_reads(
    tensors: dict[str, torch.Tensor], data: dict[str, Any], path: str
) -> dict[str, Any]:
    """What `DetectionCheckpointer._load_file` would return, had it read the file itself.

    It would do so a second time, and with a plain `pickle.load` for a .pkl.
    """
    if "model" in data:
        return {**data, "model": tensors}
    is_pycls = "model_state" in data
    if not is_pycls and not path.endswith(".pkl") and not is_caffe2(tensors):
        return {"model": tensors}
    others = ("num_batches_tracked", "_momentum")
    model = {name: tensor for name, tensor in tensors.items() if not name.endswith(others)}
    author = "pycls" if is_pycls else "Caffe2"
    return {"model": model, "__author__": author, "matching_heuristics": True}
