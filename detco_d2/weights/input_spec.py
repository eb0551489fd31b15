"""How a backbone wants its input: the settings that travel with its weights."""

from typing import Any

from detectron2.config import CfgNode

from ..config import MSRA_SPEC

KEYS = (
    "INPUT.FORMAT",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNETS.DEPTH",
)

# What torchvision, MoCo and OpenSelfSup train with; assumed for files that do not say.
TORCHVISION_SPEC: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}


def _lookup(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return [float(v) for v in cfg] if isinstance(cfg, (list, tuple)) else cfg


def same(a: Any, b: Any) -> bool:
    """Whether two settings are equal; numbers in lists up to a thousandth."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b))
    return a == b


def _keys_to_change(wrong: dict[str, Any], wanted: dict[str, Any], settings: dict[str, Any]) -> str:
    """The pairs of a command line that change `settings` into the wanted ones.

    The keys of MODEL.SUPERVISED_BASELINE change together, and only by that switch.
    """
    if wrong.keys() & MSRA_SPEC.keys():
        for switch, spec in ((True, wanted), (False, settings)):
            if all(same(spec.get(key), value) for key, value in MSRA_SPEC.items()):
                wrong = {key: value for key, value in wrong.items() if key not in MSRA_SPEC}
                wrong["MODEL.SUPERVISED_BASELINE"] = switch
                break
    return " ".join(f'{key} "{value}"' for key, value in wrong.items())


class InputSpec:
    """The settings of one config; a checkpointable, so that every checkpoint carries them."""

    def __init__(self, cfg: CfgNode) -> None:
        self.settings = {key: _lookup(cfg, key) for key in KEYS}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the weights were trained with other settings; lists the keys to change.
        """
        wrong = {
            key: value
            for key, value in state.items()
            if key in self.settings and not same(self.settings[key], value)
        }
        if wrong:
            lines = [
                f"  {k}: {v!r} in the weights, {self.settings[k]!r} here" for k, v in wrong.items()
            ]
            raise ValueError(
                "The config reads images otherwise than these weights were trained:\n"
                + "\n".join(lines)
                + "\nTrain with the weights' settings, by adding: "
                + _keys_to_change(wrong, state, self.settings)
            )
