"""How a backbone wants its input: the settings that travel with its weights."""

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode

from ..config_files import lookup
from .sources import is_caffe2

SPEC_KEY = "input_spec"  # under which a weight file of this project says them

# What torchvision, MoCo and OpenSelfSup train with; assumed for files that do not say.
TORCHVISION_SPEC: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
KEYS = (*TORCHVISION_SPEC, "MODEL.RESNETS.DEPTH")  # what a checkpoint says

# What MSRA's (Caffe2) ResNets were trained with: the supervised baseline's weights.
MSRA_SPEC: dict[str, Any] = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


def spec_of(data: dict[str, Any], names: Iterable[str]) -> dict[str, Any] | None:
    """The input settings, by config key, that a weight file says; None: it does not say.

    The names of Caffe2's tensors say that they were trained as MSRA's.

    Raises:
        ValueError: other things stand in the place of settings.
    """
    if SPEC_KEY not in data:
        return MSRA_SPEC if is_caffe2(names) else None
    spec = data[SPEC_KEY]
    if not isinstance(spec, dict) or not all(_is_setting(value) for value in spec.values()):
        raise ValueError(f"The weights' {SPEC_KEY} is {spec!r:.200}; it must hold settings.")
    return spec


def _is_setting(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (int, float)) for item in value)
    return isinstance(value, (str, int, float))


def differing(spec: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings of `spec` that `wanted` has otherwise; numbers in lists up to a thousandth."""
    return {k: v for k, v in spec.items() if k in wanted and not _is_same(v, wanted[k])}


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b))
    return a == b


class InputSpec:
    """The settings of one config; a checkpointable, so that every checkpoint carries them."""

    def __init__(self, cfg: CfgNode) -> None:
        self.settings = {key: _plain(lookup(cfg, key)) for key in KEYS}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the weights were trained with other settings; lists the keys to change.
        """
        if wrong := differing(state, self.settings):
            own = self.settings
            seen = [f"  {k}: {v!r} in the weights, {own[k]!r} here" for k, v in wrong.items()]
            raise ValueError(
                "The config reads images otherwise than these weights were trained:\n"
                + "\n".join(seen)
                + "\nTrain with the weights' settings, by adding: "
                + " ".join(f'{key} "{value}"' for key, value in wrong.items())
            )


def _plain(value: Any) -> Any:
    return [float(number) for number in value] if isinstance(value, (list, tuple)) else value
