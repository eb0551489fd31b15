"""Every configuration key of the project and its meaning; config_checks.py has their values."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .config_files import merge_file, merge_pairs
from .files import at_home

# Switches of earlier versions, whose fast side is now the only one: read and ignored.
_REMOVED_KEYS = (
    "MODEL.DETCO.CHANNELS_LAST",
    "MODEL.DETCO.FUSED_LOSS",
    "MODEL.DETCO.FUSED_EMA",
    "SOLVER.FUSED_SGD",
    "SOLVER.KEEP_FREED_MEMORY",
)


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
    # Hidden widths of the global heads, one a stage; empty: the stage's number of channels C_i.
    cfg.MODEL.DETCO.GLOBAL_HIDDEN_DIMS = []
    # The same of the local heads.
    cfg.MODEL.DETCO.LOCAL_HIDDEN_DIMS = []
    # Norm after each head's hidden layer. "": none, the paper and MoCo v2. "BN": for short runs
    # and small data, where deep local heads without it collapse (docs/GETTING_STARTED.md).
    cfg.MODEL.DETCO.HEAD_NORM = ""
    # K: length of each queue, in images.
    cfg.MODEL.DETCO.QUEUE_LENGTH = 65536
    # Whether a new run first passes K images through the key encoder, so that the queues start with
    # real keys. Otherwise they start with random vectors, and the loss rises until they are full.
    cfg.MODEL.DETCO.QUEUE_FILL = False
    # m: momentum of the key encoder, theta_k <- m theta_k + (1 - m) theta_q.
    cfg.MODEL.DETCO.MOMENTUM = 0.999
    # tau: temperature of all InfoNCE losses.
    cfg.MODEL.DETCO.TEMPERATURE = 0.2
    # Shuffle the key images over the processes, so that BN statistics do not leak (MoCo, 3.3).
    cfg.MODEL.DETCO.SHUFFLE_BN = True
    # Parts of the backbone (stem, res2, ...) that drop their activations and compute them again
    # in the backward pass: less memory, more time, the same numbers.
    cfg.MODEL.DETCO.CHECKPOINT_STAGES = []

    cfg.INPUT.DETCO = CfgNode()
    # Side of the global views, in pixels.
    cfg.INPUT.DETCO.GLOBAL_SIZE = 224
    # Share of the image's area that a global view covers, least and most.
    cfg.INPUT.DETCO.GLOBAL_SCALE = [0.2, 1.0]
    # Side in pixels of the local crop before it is cut into 3x3 cells; a multiple of 3.
    cfg.INPUT.DETCO.LOCAL_SIZE = 255
    # Share of the image's area that the local crop covers, least and most.
    cfg.INPUT.DETCO.LOCAL_SCALE = [0.6, 1.0]
    # Side in pixels of the patch that is cropped from each cell.
    cfg.INPUT.DETCO.PATCH_SIZE = 64
    # Strengths of brightness, contrast, saturation and hue (MoCo v2).
    cfg.INPUT.DETCO.COLOR_JITTER = [0.4, 0.4, 0.4, 0.1]
    # Probability of the colour jitter.
    cfg.INPUT.DETCO.COLOR_JITTER_PROB = 0.8
    # Probability of a grey view.
    cfg.INPUT.DETCO.GRAYSCALE_PROB = 0.2
    # Probability of the Gaussian blur.
    cfg.INPUT.DETCO.BLUR_PROB = 0.5
    # Its sigma in pixels, least and most.
    cfg.INPUT.DETCO.BLUR_SIGMA = [0.1, 2.0]
    # Probability of a mirrored view.
    cfg.INPUT.DETCO.FLIP_PROB = 0.5
    # RandAugment on the global views ("DetCo-AA"): number of operations; 0 is off.
    cfg.INPUT.DETCO.RANDAUGMENT_OPS = 0
    # Its magnitude, 0..30.
    cfg.INPUT.DETCO.RANDAUGMENT_MAGNITUDE = 9

    # How the views are made. "pil": on the CPU by torchvision and Pillow, which defines a view.
    # "fast": on the CPU by OpenCV, with one colour matrix a view and bilinear sampling without
    # antialiasing. "device": the same, but the colours, the blur and the jigsaw are left to the
    # training device, batched.
    cfg.INPUT.DETCO.AUGMENTATION = "fast"
    # Images with a side of fewer pixels are skipped as unreadable.
    cfg.INPUT.DETCO.MIN_SIDE = 16
    # So are images of more pixels (Pillow's limit against decompression bombs; raise it for larger
    # images that you trust).
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

    # In pretraining: the newest checkpoints to keep.
    cfg.SOLVER.KEEP_CHECKPOINTS = 3
    # In pretraining: saves in a row that may fail (a full disk) before training stops.
    cfg.SOLVER.MAX_FAILED_SAVES = 3
    # In pretraining: steps in a row with a loss, key or gradient that is no number, each of which
    # is undone, before training stops.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
    # Seconds that a process waits for the others, or for its loader processes, before the job ends.
    cfg.SOLVER.COLLECTIVE_TIMEOUT = 600

    # In pretraining: top-1 accuracy of nearest neighbours on the frozen backbone, as knn/{stage}
    # (docs/watching.md).
    cfg.TEST.KNN = CfgNode()
    # A folder of class folders, or a detection data set whose boxes are cut out; "" is off.
    cfg.TEST.KNN.DATASET = ""
    # Iterations between two evaluations, the first before training; the last iteration always has
    # one. 0: that one alone.
    cfg.TEST.KNN.PERIOD = 0
    # k.
    cfg.TEST.KNN.NEIGHBOURS = 20
    # At most so many labelled images in each half.
    cfg.TEST.KNN.MAX_IMAGES = 5000

    cfg.WANDB = CfgNode()
    # In pretraining: the project of Weights & Biases that the scalars and pictures go to as well;
    # "" is off (docs/watching.md).
    cfg.WANDB.PROJECT = ""

    for key in _REMOVED_KEYS:
        if not cfg.key_is_deprecated(key):
            cfg.register_deprecated_key(key)


def load_config(file: str, settings: Sequence[Any] = ()) -> CfgNode:
    """Detectron2's defaults and ours, under a config file, under KEY VALUE pairs; `~` written out.

    Raises:
        FileNotFoundError, ValueError: see :func:`merge_file` and :func:`merge_pairs`.
    """
    cfg = get_cfg()
    add_detco_config(cfg)
    merge_file(cfg, at_home(file))
    merge_pairs(cfg, settings)
    _settle(cfg)
    return cfg


def _settle(node: CfgNode) -> None:
    """Write out `~`, and make lists within tuples, as a dump has them, tuples again."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _settle(value)
        elif isinstance(value, tuple):
            node[key] = tuple(tuple(v) if isinstance(v, list) else at_home(v) for v in value)
        else:
            node[key] = at_home(value)
