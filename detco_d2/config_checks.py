"""What the keys of a pretraining config may be."""

import math
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY as META

from .config_files import lookup
from .families import FAMILIES
from .recipe import KEYS

# Whether a value is possible, and what is said that it must be.
Rule = tuple[Callable[[Any], bool], str]

_RESNET_STAGES = ["stem", "res2", "res3", "res4", "res5"]


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number from low to high (yacs lets None through, YAML .nan)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def _are_numbers(values: Any, count: int, low: float = -math.inf, high: float = math.inf) -> bool:
    is_list = isinstance(values, (list, tuple)) and len(values) == count
    return is_list and all(_is_number(value, low, high) for value in values)


def _are_names(values: Any) -> bool:
    """Whether it is a list of different strings."""
    is_list = isinstance(values, (list, tuple)) and all(isinstance(v, str) for v in values)
    return is_list and len(set(values)) == len(values)


def _at_least(low: float) -> Rule:
    return lambda value: _is_number(value, low), f"at least {low}"


def _up_to(high: float) -> Rule:
    return lambda value: _is_number(value, 0, high), f"between 0 and {high}"


def _is_range(pair: Any, high: float = math.inf) -> bool:
    return _are_numbers(pair, 2, 0, high) and 0 < pair[0] <= pair[1]


def _one_of(*values: str) -> Rule:
    quoted = [f'"{value}"' for value in values]
    return lambda value: value in values, f"{', '.join(quoted[:-1])} or {quoted[-1]}"


_SHARES: Rule = (lambda pair: _is_range(pair, 1), "two numbers, 0 < low <= high <= 1")
_BELOW_ONE: Rule = (lambda value: _is_number(value, 0) and value < 1, "at least 0 and below 1")
_RULES: dict[str, Rule] = {
    "MODEL.META_ARCHITECTURE": (
        lambda v: v in META and not META.get(v).__module__.startswith("detectron2."),
        '"DetCo", as in configs/detco.yaml, or one of yours; detectors are for train_net.py',
    ),
    "MODEL.DETCO.STAGES": (lambda v: v and _are_names(v), "a list of different backbone stages"),
    "MODEL.DETCO.FAMILIES": (
        lambda names: names and _are_names(names) and set(names) <= set(FAMILIES),
        f"one or more of {list(FAMILIES)}",
    ),
    "MODEL.DETCO.EMBED_DIM": _at_least(1),
    "MODEL.DETCO.HEAD_NORM": _one_of("", "BN", "SyncBN", "LN"),
    "MODEL.DETCO.QUEUE_LENGTH": _at_least(1),
    "MODEL.DETCO.QUEUE_FILL": (lambda value: isinstance(value, bool), "True or False"),
    "MODEL.DETCO.MOMENTUM": _up_to(1),
    "MODEL.DETCO.TEMPERATURE": (lambda value: _is_number(value, 0) and value > 0, "above 0"),
    "MODEL.DETCO.CHECKPOINT_STAGES": (_are_names, "a list of different parts of the backbone"),
    "MODEL.PIXEL_MEAN": (lambda values: _are_numbers(values, 3), "three numbers"),
    "MODEL.PIXEL_STD": (lambda v: _are_numbers(v, 3) and min(v) > 0, "three numbers above 0"),
    "INPUT.FORMAT": _one_of("RGB", "BGR"),
    "INPUT.DETCO.GLOBAL_SIZE": _at_least(1),
    "INPUT.DETCO.GLOBAL_SCALE": _SHARES,
    "INPUT.DETCO.LOCAL_SCALE": _SHARES,
    "INPUT.DETCO.COLOR_JITTER": (
        lambda values: _are_numbers(values, 4, low=0) and values[3] <= 0.5,
        "four numbers >= 0 (brightness, contrast, saturation, hue), the hue at most 0.5",
    ),
    "INPUT.DETCO.COLOR_JITTER_PROB": _up_to(1),
    "INPUT.DETCO.GRAYSCALE_PROB": _up_to(1),
    "INPUT.DETCO.BLUR_PROB": _up_to(1),
    "INPUT.DETCO.BLUR_SIGMA": (_is_range, "two numbers, 0 < low <= high"),
    "INPUT.DETCO.FLIP_PROB": _up_to(1),
    "INPUT.DETCO.RANDAUGMENT_OPS": _at_least(0),
    "INPUT.DETCO.RANDAUGMENT_MAGNITUDE": _up_to(30),  # torchvision has 31
    "INPUT.DETCO.AUGMENTATION": (
        lambda value: value in ("pil", "fast", "device", "exact"),  # the last means "pil"
        '"pil", "fast" or "device"',
    ),
    "INPUT.DETCO.MIN_SIDE": _at_least(1),
    "INPUT.DETCO.MAX_PIXELS": _at_least(1),
    "VIS_PERIOD": _at_least(0),
    "DATALOADER.NUM_WORKERS": _at_least(0),
    "DATALOADER.MAX_BAD_FRACTION": _BELOW_ONE,
    "SOLVER.IMS_PER_BATCH": _at_least(1),
    "SOLVER.ACCUMULATION_STEPS": _at_least(1),
    "SOLVER.MAX_EPOCHS": _at_least(0),
    "SOLVER.BASE_LR": _at_least(0),
    "SOLVER.LR_REFERENCE_BATCH": _at_least(0),
    "SOLVER.WARMUP_ITERS": _at_least(0),
    "SOLVER.WEIGHT_DECAY": _at_least(0),
    "SOLVER.MOMENTUM": _BELOW_ONE,
    "SOLVER.CHECKPOINT_PERIOD": _at_least(1),
    "SOLVER.KEEP_CHECKPOINTS": _at_least(1),
    "SOLVER.MAX_FAILED_SAVES": _at_least(0),
    "SOLVER.MAX_NONFINITE_STEPS": _at_least(0),
    "SOLVER.COLLECTIVE_TIMEOUT": _at_least(1),
    "TEST.KNN.PERIOD": _at_least(0),
    "TEST.KNN.NEIGHBOURS": _at_least(1),
    "TEST.KNN.MAX_IMAGES": _at_least(2),
    "WANDB.PROJECT": (lambda value: isinstance(value, str), 'a name, or "" for none'),
}


def check_detco_config(cfg: CfgNode, is_open: bool = False) -> None:
    """Refuse impossible values; in an open config the keys of the recipe may have none.

    Raises:
        ValueError: naming the key, the value seen and what is allowed.
    """
    for key, (is_possible, allowed) in _RULES.items():
        value = lookup(cfg, key)
        is_left = is_open and value is None and key in KEYS
        _demand(is_left or is_possible(value), key, value, allowed)
    node, views, solver = cfg.MODEL.DETCO, cfg.INPUT.DETCO, cfg.SOLVER
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":  # another's stages are its own affair
        outputs = cfg.MODEL.RESNETS.OUT_FEATURES
        possible = _are_names(outputs) and set(outputs) <= set(_RESNET_STAGES)
        _demand(possible, "MODEL.RESNETS.OUT_FEATURES", outputs, f"some of {_RESNET_STAGES}")
        allowed = f"some of MODEL.RESNETS.OUT_FEATURES {outputs}, which may be {_RESNET_STAGES}"
        _demand(set(node.STAGES) <= set(outputs), "MODEL.DETCO.STAGES", node.STAGES, allowed)
    count, weights = len(node.STAGES), node.STAGE_WEIGHTS
    allowed = f"{count} numbers >= 0, one for each of MODEL.DETCO.STAGES {node.STAGES}"
    _demand(_are_numbers(weights, count, low=0), "MODEL.DETCO.STAGE_WEIGHTS", weights, allowed)
    allowed = f"empty (the stage's width), or {count} widths > 0, one a stage"
    for name in ("GLOBAL_HIDDEN_DIMS", "LOCAL_HIDDEN_DIMS"):
        widths = node[name]
        possible = _are_numbers(widths, 0) or _are_numbers(widths, count, low=1)
        _demand(possible, f"MODEL.DETCO.{name}", widths, allowed)
    sizes = side, patch = views.LOCAL_SIZE, views.PATCH_SIZE
    possible = _are_numbers(sizes, 2, low=1) and side % 3 == 0 and patch <= side // 3
    allowed = "a multiple of 3, and a patch no larger than a third of it (255 and 64 in the paper)"
    _demand(possible, "INPUT.DETCO.LOCAL_SIZE, PATCH_SIZE", sizes, allowed)
    possible = solver.MAX_EPOCHS > 0 or _is_number(solver.MAX_ITER, 1)
    allowed = "at least 1, or SOLVER.MAX_EPOCHS above 0"
    _demand(possible, "SOLVER.MAX_ITER", solver.MAX_ITER, allowed)


def _demand(is_possible: bool, key: str, value: Any, allowed: str) -> None:
    if not is_possible:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}.")
