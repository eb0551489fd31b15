"""What the keys of a pretraining config may be."""

import math
from typing import Any

from detectron2.config import CfgNode

from .config_files import lookup
from .families import FAMILIES


def _require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}; it must be {expected}.")


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number from low to high (yacs lets None through, YAML .nan)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and low <= value <= high


def _are_numbers(values: Any, count: int, low: float = -math.inf, high: float = math.inf) -> bool:
    return (
        isinstance(values, (list, tuple))
        and len(values) == count
        and all(_is_number(value, low, high) for value in values)
    )


def _are_names(values: Any) -> bool:
    """Whether it is a list of different strings."""
    is_list = isinstance(values, (list, tuple)) and all(isinstance(v, str) for v in values)
    return is_list and len(set(values)) == len(values)


# The numbers that stand alone, with the least and the most that they may be.
_RANGES: dict[str, tuple[float, float]] = {
    "MODEL.DETCO.EMBED_DIM": (1, math.inf),
    "MODEL.DETCO.QUEUE_LENGTH": (1, math.inf),
    "MODEL.DETCO.MOMENTUM": (0, 1),
    "INPUT.DETCO.GLOBAL_SIZE": (1, math.inf),
    "INPUT.DETCO.COLOR_JITTER_PROB": (0, 1),
    "INPUT.DETCO.GRAYSCALE_PROB": (0, 1),
    "INPUT.DETCO.BLUR_PROB": (0, 1),
    "INPUT.DETCO.FLIP_PROB": (0, 1),
    "INPUT.DETCO.RANDAUGMENT_OPS": (0, math.inf),
    "INPUT.DETCO.RANDAUGMENT_MAGNITUDE": (0, 30),  # torchvision has 31
    "INPUT.DETCO.MIN_SIDE": (1, math.inf),
    "INPUT.DETCO.MAX_PIXELS": (1, math.inf),
    "VIS_PERIOD": (0, math.inf),
    "DATALOADER.NUM_WORKERS": (0, math.inf),
    "SOLVER.IMS_PER_BATCH": (1, math.inf),
    "SOLVER.ACCUMULATION_STEPS": (1, math.inf),
    "SOLVER.MAX_EPOCHS": (0, math.inf),
    "SOLVER.BASE_LR": (0, math.inf),
    "SOLVER.LR_REFERENCE_BATCH": (0, math.inf),
    "SOLVER.WEIGHT_DECAY": (0, math.inf),
    "SOLVER.CHECKPOINT_PERIOD": (1, math.inf),
    "SOLVER.KEEP_CHECKPOINTS": (1, math.inf),
    "SOLVER.MAX_FAILED_SAVES": (0, math.inf),
    "SOLVER.MAX_NONFINITE_STEPS": (0, math.inf),
    "SOLVER.COLLECTIVE_TIMEOUT": (1, math.inf),
    "TEST.KNN.PERIOD": (0, math.inf),
    "TEST.KNN.NEIGHBOURS": (1, math.inf),
    "TEST.KNN.MAX_IMAGES": (2, math.inf),
}


def check_detco_config(cfg: CfgNode) -> None:
    """Refuse impossible values.

    Raises:
        ValueError: naming the key, the value seen and what is allowed.
    """
    for key, (low, high) in _RANGES.items():
        allowed = f"between {low} and {high}" if high < math.inf else f"at least {low}"
        _require(_is_number(lookup(cfg, key), low, high), key, lookup(cfg, key), allowed)
    _check_model(cfg)
    _check_views(cfg)
    project = cfg.WANDB.PROJECT
    _require(isinstance(project, str), "WANDB.PROJECT", project, 'a name, or "" for none')
    share, momentum = cfg.DATALOADER.MAX_BAD_FRACTION, cfg.SOLVER.MOMENTUM
    for key, value in (("DATALOADER.MAX_BAD_FRACTION", share), ("SOLVER.MOMENTUM", momentum)):
        _require(_is_number(value, 0) and value < 1, key, value, "at least 0 and below 1")
    _require(
        cfg.SOLVER.MAX_EPOCHS > 0 or _is_number(cfg.SOLVER.MAX_ITER, 1),
        "SOLVER.MAX_ITER",
        cfg.SOLVER.MAX_ITER,
        "at least 1, or SOLVER.MAX_EPOCHS above 0",
    )


def _check_model(cfg: CfgNode) -> None:
    node = cfg.MODEL.DETCO
    _require(
        _are_names(node.STAGES) and len(node.STAGES) > 0,
        "MODEL.DETCO.STAGES",
        node.STAGES,
        "a list of different backbone stages, such as res2, res3, res4, res5",
    )
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":  # another's stages are its own affair
        outputs, known = cfg.MODEL.RESNETS.OUT_FEATURES, ["stem", "res2", "res3", "res4", "res5"]
        _require(
            _are_names(outputs) and set(outputs) <= set(known),
            "MODEL.RESNETS.OUT_FEATURES",
            outputs,
            f"some of {known}",
        )
        _require(
            set(node.STAGES) <= set(outputs),
            "MODEL.DETCO.STAGES",
            node.STAGES,
            f"some of MODEL.RESNETS.OUT_FEATURES {outputs}, which may be {known}",
        )
    stages = len(node.STAGES)
    _require(
        _are_numbers(node.STAGE_WEIGHTS, stages, low=0),
        "MODEL.DETCO.STAGE_WEIGHTS",
        node.STAGE_WEIGHTS,
        f"{stages} numbers >= 0, one for each of MODEL.DETCO.STAGES {node.STAGES}",
    )
    _require(
        _are_names(node.FAMILIES)
        and 0 < len(node.FAMILIES)
        and set(node.FAMILIES) <= set(FAMILIES),
        "MODEL.DETCO.FAMILIES",
        node.FAMILIES,
        f"one or more of {list(FAMILIES)}",
    )
    for key in ("GLOBAL_HIDDEN_DIMS", "LOCAL_HIDDEN_DIMS"):
        _require(
            _are_numbers(node[key], 0) or _are_numbers(node[key], stages, low=1),
            f"MODEL.DETCO.{key}",
            node[key],
            f"empty (the stage's width), or {stages} widths > 0, one a stage",
        )
    _require(
        node.HEAD_NORM in ("", "BN", "SyncBN", "LN"),
        "MODEL.DETCO.HEAD_NORM",
        node.HEAD_NORM,
        '"", "BN", "SyncBN" or "LN"',
    )
    _require(
        _is_number(node.TEMPERATURE, 0) and node.TEMPERATURE > 0,
        "MODEL.DETCO.TEMPERATURE",
        node.TEMPERATURE,
        "above 0",
    )
    _require(
        _are_names(node.CHECKPOINT_STAGES),
        "MODEL.DETCO.CHECKPOINT_STAGES",
        node.CHECKPOINT_STAGES,
        "a list of different parts of the backbone, such as stem, res2",
    )


def _check_views(cfg: CfgNode) -> None:
    views = cfg.INPUT.DETCO
    _require(
        _are_numbers((views.LOCAL_SIZE, views.PATCH_SIZE), 2, low=1)
        and views.LOCAL_SIZE % 3 == 0
        and views.PATCH_SIZE <= views.LOCAL_SIZE // 3,
        "INPUT.DETCO.LOCAL_SIZE, PATCH_SIZE",
        (views.LOCAL_SIZE, views.PATCH_SIZE),
        "a multiple of 3, and a patch no larger than a third of it (255 and 64 in the paper)",
    )
    _require(
        views.AUGMENTATION in ("pil", "fast", "device", "exact"),  # the last means "pil"
        "INPUT.DETCO.AUGMENTATION",
        views.AUGMENTATION,
        '"pil", "fast" or "device"',
    )
    _require(cfg.INPUT.FORMAT in ("RGB", "BGR"), "INPUT.FORMAT", cfg.INPUT.FORMAT, "RGB or BGR")
    for key, high, allowed in (
        ("GLOBAL_SCALE", 1, "0 < low <= high <= 1"),
        ("LOCAL_SCALE", 1, "0 < low <= high <= 1"),
        ("BLUR_SIGMA", math.inf, "0 < low <= high"),
    ):
        pair = views[key]
        _require(
            _are_numbers(pair, 2, 0, high) and 0 < pair[0] <= pair[1],
            f"INPUT.DETCO.{key}",
            pair,
            f"two numbers, {allowed}",
        )
    _require(
        _are_numbers(views.COLOR_JITTER, 4, low=0) and views.COLOR_JITTER[3] <= 0.5,
        "INPUT.DETCO.COLOR_JITTER",
        views.COLOR_JITTER,
        "four numbers >= 0 (brightness, contrast, saturation, hue), the hue at most 0.5",
    )
    for key, ok in (
        ("PIXEL_MEAN", _are_numbers(cfg.MODEL.PIXEL_MEAN, 3)),
        ("PIXEL_STD", _are_numbers(cfg.MODEL.PIXEL_STD, 3) and min(cfg.MODEL.PIXEL_STD) > 0),
    ):
        _require(ok, f"MODEL.{key}", cfg.MODEL[key], "three numbers, those of PIXEL_STD above 0")
