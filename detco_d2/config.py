"""Every configuration key of the project, its meaning, and what it may be."""

import math
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .checkpoint.input_spec import MSRA_SPEC
from .config_files import lookup, merge_file, merge_pairs

# The three loss families of equation 1: which view asks (query), and which view gives the
# positive key and owns the queue of negatives.
FAMILIES: dict[str, tuple[str, str]] = {
    "gg": ("global", "global"),  # eq. 2
    "gl": ("local", "global"),  # eq. 4: one direction only, a local query and a global key
    "ll": ("local", "local"),  # eq. 5
}


def required_views(families: list[str]) -> list[str]:
    """The views that these loss families read, in a fixed order.

    >>> required_views(["gg"])
    ['global_query', 'global_key']
    """
    needed = {f"{FAMILIES[family][0]}_query" for family in families}
    needed |= {f"{FAMILIES[family][1]}_key" for family in families}
    order = ["global_query", "global_key", "local_query", "local_key"]
    return [view for view in order if view in needed]


def add_detco_config(cfg: CfgNode) -> None:
    """Add the keys of detco_d2 to a Detectron2 config, at their default (the paper's) values."""
    cfg.MODEL.DETCO = CfgNode()
    # Backbone stages under contrast, shallow to deep (the paper's i = 1..4 is res2..res5).
    cfg.MODEL.DETCO.STAGES = ["res2", "res3", "res4", "res5"]
    # w_i of equation 1, one number a stage of STAGES.
    cfg.MODEL.DETCO.STAGE_WEIGHTS = [0.1, 0.4, 0.7, 1.0]
    # Loss families of equation 1 that are switched on: any of gg, ll, gl.
    cfg.MODEL.DETCO.FAMILIES = ["gg", "ll", "gl"]
    # Dimension of the embeddings.
    cfg.MODEL.DETCO.EMBED_DIM = 128
    # Hidden widths of the MLP heads, one a stage; empty: the stage's number of channels C_i.
    cfg.MODEL.DETCO.GLOBAL_HIDDEN_DIMS = []
    cfg.MODEL.DETCO.LOCAL_HIDDEN_DIMS = []
    # Norm after each head's hidden layer. "": none, the paper and MoCo v2. "BN": for short runs
    # and small data, where deep local heads without it collapse (docs/short_runs.md).
    cfg.MODEL.DETCO.HEAD_NORM = ""
    # K: length of each queue, in images.
    cfg.MODEL.DETCO.QUEUE_LENGTH = 65536
    # m: momentum of the key encoder, theta_k <- m theta_k + (1 - m) theta_q.
    cfg.MODEL.DETCO.MOMENTUM = 0.999
    # tau: temperature of all InfoNCE losses.
    cfg.MODEL.DETCO.TEMPERATURE = 0.2
    # Shuffle the key images over the processes, so that BN statistics do not leak (MoCo, 3.3).
    cfg.MODEL.DETCO.SHUFFLE_BN = True
    # Speed, with the same numbers up to rounding; off for comparisons. The backbone's memory
    # format, the losses in one pass over each queue, the moving average in one call.
    cfg.MODEL.DETCO.CHANNELS_LAST = True
    cfg.MODEL.DETCO.FUSED_LOSS = True
    cfg.MODEL.DETCO.FUSED_EMA = True
    # Parts of the backbone (stem, res2, ...) that drop their activations and compute them again
    # in the backward pass: less memory, more time, the same numbers.
    cfg.MODEL.DETCO.CHECKPOINT_STAGES = []

    cfg.INPUT.DETCO = CfgNode()
    # Side of the global views in pixels, and the share of the image area that a crop covers.
    cfg.INPUT.DETCO.GLOBAL_SIZE = 224
    cfg.INPUT.DETCO.GLOBAL_SCALE = [0.2, 1.0]
    # Side in pixels of the local crop before it is cut into 3x3 cells (a multiple of 3), the share
    # of the image that it covers, and the side of the patch cropped from each cell.
    cfg.INPUT.DETCO.LOCAL_SIZE = 255
    cfg.INPUT.DETCO.LOCAL_SCALE = [0.6, 1.0]
    cfg.INPUT.DETCO.PATCH_SIZE = 64
    # Photometric set of MoCo v2: brightness, contrast, saturation, hue; probabilities; the range
    # of the Gaussian blur's sigma in pixels.
    cfg.INPUT.DETCO.COLOR_JITTER = [0.4, 0.4, 0.4, 0.1]
    cfg.INPUT.DETCO.COLOR_JITTER_PROB = 0.8
    cfg.INPUT.DETCO.GRAYSCALE_PROB = 0.2
    cfg.INPUT.DETCO.BLUR_PROB = 0.5
    cfg.INPUT.DETCO.BLUR_SIGMA = [0.1, 2.0]
    cfg.INPUT.DETCO.FLIP_PROB = 0.5
    # RandAugment on the global views ("DetCo-AA"): number of operations (0: off), magnitude.
    cfg.INPUT.DETCO.RANDAUGMENT_OPS = 0
    cfg.INPUT.DETCO.RANDAUGMENT_MAGNITUDE = 9

    # How the views are made. "exact": on the CPU, within one grey level of "pil", the plain chain
    # of torchvision and Pillow that it replaces. "fast": on the CPU by OpenCV, with one colour
    # matrix a view and bilinear sampling without antialiasing. "device": the same, but the colours,
    # the blur and the jigsaw are left to the training device, batched.
    cfg.INPUT.DETCO.AUGMENTATION = "exact"
    # Images that are skipped as unreadable: a side of fewer pixels, or more pixels in all (Pillow's
    # limit against decompression bombs; raise it for larger images that you trust).
    cfg.INPUT.DETCO.MIN_SIDE = 16
    cfg.INPUT.DETCO.MAX_PIXELS = 89478485
    # The share of the images that may be unreadable; beyond it pretraining stops.
    cfg.DATALOADER.MAX_BAD_FRACTION = 0.05

    # Length of pretraining in epochs; above 0 it replaces SOLVER.MAX_ITER by
    # MAX_EPOCHS * (number of images // IMS_PER_BATCH).
    cfg.SOLVER.MAX_EPOCHS = 0

    # In pretraining: parts into which a process cuts its share of the batch, one after the other
    # on the device, for 1/n of the memory. All parts meet the same queues and momentum encoder;
    # batch norm sees the images of one part.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # In pretraining: the batch that BASE_LR is meant for; above 0 the rate is scaled by
    # IMS_PER_BATCH / this.
    cfg.SOLVER.LR_REFERENCE_BATCH = 0
    # Torch's fused SGD in pretraining; the same numbers up to rounding.
    cfg.SOLVER.FUSED_SGD = True
    # In pretraining on the CPU: the process keeps the memory that a step frees, for the next one.
    cfg.SOLVER.KEEP_FREED_MEMORY = True

    # In pretraining: the newest checkpoints to keep, and the saves in a row that may fail (a full
    # disk) before training stops.
    cfg.SOLVER.KEEP_CHECKPOINTS = 3
    cfg.SOLVER.MAX_FAILED_SAVES = 3
    # In pretraining: steps in a row with a loss, key or gradient that is no number, each of which
    # is undone, before training stops.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Seconds that a process waits for the others, or for its loader processes, before the job ends.
    cfg.SOLVER.COLLECTIVE_TIMEOUT = 600

    # In pretraining: top-1 accuracy of nearest neighbours on the frozen backbone, as knn/{stage}
    # (docs/probes.md). DATASET: a folder of class folders, or a detection data set whose boxes are
    # cut out; "" is off. PERIOD: iterations between two evaluations, the first before training; the
    # last iteration always has one; 0: that one alone.
    cfg.TEST.KNN = CfgNode()
    cfg.TEST.KNN.DATASET = ""
    cfg.TEST.KNN.PERIOD = 0
    # k, and at most so many labelled images in each half.
    cfg.TEST.KNN.NEIGHBOURS = 20
    cfg.TEST.KNN.MAX_IMAGES = 5000

    # In pretraining: the project of Weights & Biases that the scalars and pictures go to as well;
    # "" is off (docs/watching.md).
    cfg.WANDB = CfgNode()
    cfg.WANDB.PROJECT = ""

    # Fine-tune from supervised weights (MSRA's ResNet-50) with the input that they want: the
    # supervised rows of the paper's tables. Applied by apply_supervised_baseline.
    cfg.MODEL.SUPERVISED_BASELINE = False


def load_config(file: str, settings: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's defaults and ours, under a config file, under KEY VALUE pairs.

    Raises:
        FileNotFoundError, ValueError: see :func:`merge_file` and :func:`merge_pairs`.
    """
    cfg = get_cfg()
    add_detco_config(cfg)
    merge_file(cfg, file)
    merge_pairs(cfg, settings)
    return cfg


def check_weights(cfg: CfgNode) -> None:
    """
    Raises:
        FileNotFoundError: MODEL.WEIGHTS is no address, and no file either.
    """
    path = cfg.MODEL.WEIGHTS
    if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {os.path.abspath(path)!r}.")


_SUPERVISED_WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def apply_supervised_baseline(cfg: CfgNode) -> None:
    """Turn a transfer config into its supervised baseline, if MODEL.SUPERVISED_BASELINE is set.

    Sets the input of MSRA's weights, and MODEL.WEIGHTS to its ResNet-50 where that is empty. The
    official C4 configs for COCO differ in one thing more: 1333 instead of 1200 pixels as the
    largest training side.

    Args:
        cfg: merged, not frozen; changed in place.
    """
    if not cfg.MODEL.SUPERVISED_BASELINE:
        return
    cfg.merge_from_list([item for pair in MSRA_SPEC.items() for item in pair])
    if cfg.INPUT.MAX_SIZE_TRAIN == 1200:
        cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or _SUPERVISED_WEIGHTS


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
        views.AUGMENTATION in ("pil", "exact", "fast", "device"),
        "INPUT.DETCO.AUGMENTATION",
        views.AUGMENTATION,
        '"pil", "exact", "fast" or "device"',
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
