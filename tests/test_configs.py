"""Every shipped YAML builds, and the paper's values stand after merging."""

import glob
import os

import pytest
from detectron2.modeling import build_model

from .conftest import ROOT, load_config

CONFIGS = sorted(
    os.path.relpath(path, os.path.join(ROOT, "configs"))
    for path in glob.glob(os.path.join(ROOT, "configs", "**", "*.yaml"), recursive=True)
    if not os.path.basename(path).startswith("Base-")
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_builds(config):
    cfg = load_config(config)
    if cfg.MODEL.META_ARCHITECTURE == "DetCo":
        cfg.MODEL.DETCO.QUEUE_LENGTH = 64
    model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 10**7


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, (list, tuple)) else cfg


PAPER = {  # sections 3.2-3.4 and 4 of the paper, MoCo v2 where it is silent
    "MODEL.META_ARCHITECTURE": "DetCo",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.DETCO.STAGES": ["res2", "res3", "res4", "res5"],
    "MODEL.DETCO.STAGE_WEIGHTS": [0.1, 0.4, 0.7, 1.0],
    "MODEL.DETCO.FAMILIES": ["gg", "ll", "gl"],
    "MODEL.DETCO.EMBED_DIM": 128,
    "MODEL.DETCO.HEAD_NORM": "",
    "MODEL.DETCO.QUEUE_LENGTH": 65536,
    "MODEL.DETCO.MOMENTUM": 0.999,
    "MODEL.DETCO.TEMPERATURE": 0.2,
    "MODEL.DETCO.SHUFFLE_BN": True,
    "INPUT.FORMAT": "RGB",
    "INPUT.DETCO.GLOBAL_SIZE": 224,
    "INPUT.DETCO.GLOBAL_SCALE": [0.2, 1.0],
    "INPUT.DETCO.LOCAL_SIZE": 255,
    "INPUT.DETCO.LOCAL_SCALE": [0.6, 1.0],
    "INPUT.DETCO.PATCH_SIZE": 64,
    "INPUT.DETCO.COLOR_JITTER": [0.4, 0.4, 0.4, 0.1],
    "INPUT.DETCO.COLOR_JITTER_PROB": 0.8,
    "INPUT.DETCO.GRAYSCALE_PROB": 0.2,
    "INPUT.DETCO.BLUR_PROB": 0.5,
    "INPUT.DETCO.BLUR_SIGMA": [0.1, 2.0],
    "INPUT.DETCO.FLIP_PROB": 0.5,
    "INPUT.DETCO.RANDAUGMENT_OPS": 0,
    "DATASETS.TRAIN": ["imagenet_train"],
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.BASE_LR": 0.03,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_ITER": 1_281_167 // 256 * 200,
    "SOLVER.AMP.ENABLED": False,
}
TRANSFER = {  # the official fine-tuning configs for self-supervised weights
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
}
EXPECTED = {
    "detco.yaml": PAPER,
    "detco_aa.yaml": {
        **PAPER,
        "INPUT.DETCO.RANDAUGMENT_OPS": 2,
        "INPUT.DETCO.RANDAUGMENT_MAGNITUDE": 9,
    },
    "moco_v2.yaml": {
        **PAPER,
        "MODEL.DETCO.STAGES": ["res5"],
        "MODEL.DETCO.STAGE_WEIGHTS": [1.0],
        "MODEL.DETCO.FAMILIES": ["gg"],
    },
    "ablations/detco_multi_stage_only.yaml": {
        **PAPER,
        "MODEL.DETCO.FAMILIES": ["gg"],
        "SOLVER.MAX_ITER": 5004 * 100,
    },
    "ablations/detco_global_local_only.yaml": {
        **PAPER,
        "MODEL.DETCO.STAGES": ["res5"],
        "MODEL.DETCO.STAGE_WEIGHTS": [1.0],
        "SOLVER.MAX_ITER": 5004 * 100,
    },
    "coco/mask_rcnn_R_50_C4_1x.yaml": {
        **TRANSFER,
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "INPUT.MAX_SIZE_TRAIN": 1200,
        "SOLVER.BASE_LR": 0.02,
    },
    "coco/mask_rcnn_R_50_FPN_1x.yaml": {
        **TRANSFER,
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "INPUT.MAX_SIZE_TRAIN": 1333,
        "SOLVER.BASE_LR": 0.02,
    },
    "coco/retinanet_R_50_FPN_1x.yaml": {
        **TRANSFER,
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.RETINANET.NORM": "",
        "INPUT.MAX_SIZE_TRAIN": 1333,
        "SOLVER.BASE_LR": 0.01,
    },
}


@pytest.mark.parametrize("config", EXPECTED)
def test_the_papers_values_stand_after_merging(config):
    cfg = load_config(config)
    found = {key: value(cfg, key) for key in EXPECTED[config]}
    assert found == EXPECTED[config]


def test_sync_bn_is_in_backbone_and_fpn_of_every_protocol():
    """Read from the files, since on the CPU it is replaced."""
    with open(os.path.join(ROOT, "configs", "coco", "Base-Transfer.yaml")) as file:
        assert 'NORM: "SyncBN"' in file.read()
    for base in ("Base-RCNN-FPN.yaml", "Base-RetinaNet.yaml"):
        with open(os.path.join(ROOT, "configs", "coco", base)) as file:
            assert 'NORM: "SyncBN"' in file.read()


def test_no_yaml_runs_code():
    for config in glob.glob(os.path.join(ROOT, "configs", "**", "*.yaml"), recursive=True):
        with open(config) as file:
            assert "!!python" not in file.read(), config
