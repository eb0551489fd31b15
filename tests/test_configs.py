"""Every shipped YAML builds, and the paper's values stand after merging."""

import glob
import os

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from detco_d2.config import add_detco_config
from detco_d2.config import load_config as read_config
from detco_d2.config_files import flatten

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


def test_every_config_is_read_again_from_its_own_dump(tmp_path):
    for config in CONFIGS:
        cfg = read_config(os.path.join(ROOT, "configs", config))
        (tmp_path / "config.yaml").write_text(cfg.dump())
        assert read_config(str(tmp_path / "config.yaml")) == cfg, config
    plain = get_cfg().dump()  # of another program: two keys have one list as their default
    (tmp_path / "config.yaml").write_text(plain)
    assert "*id001" in plain and read_config(str(tmp_path / "config.yaml")).VERSION == 2


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
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.LR_REFERENCE_BATCH": 0,
}
# Of the fine-tuning protocols all that is not as Detectron2 has it by default.
TRANSFER = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "SOLVER.BASE_LR": 0.02,
    "TEST.PRECISE_BN.ENABLED": True,
}
C4 = {
    **TRANSFER,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
}
COCO_C4 = {
    **C4,
    "MODEL.MASK_ON": True,
    "INPUT.MAX_SIZE_TRAIN": 1200,
}
FPN = {
    **TRANSFER,
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
RETINANET = {
    **TRANSFER,
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [pytest.approx(size * 2 ** (octave / 3)) for octave in range(3)]
        for size in (32, 64, 128, 256, 512)
    ],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    "SOLVER.BASE_LR": 0.01,
}
SCHEDULES = {
    "12k": {"SOLVER.MAX_ITER": 12000, "SOLVER.STEPS": [9000, 11000]},
    "1x": {"SOLVER.MAX_ITER": 90000, "SOLVER.STEPS": [60000, 80000]},
    "2x": {"SOLVER.MAX_ITER": 180000, "SOLVER.STEPS": [120000, 160000]},
}
CITYSCAPES_TEST = {"INPUT.MIN_SIZE_TEST": 1024, "INPUT.MAX_SIZE_TEST": 2048}
TRANSFER_CONFIGS = {
    **{
        f"coco/{name}_{length}.yaml": {**protocol, **schedule}
        for name, protocol in (
            ("mask_rcnn_R_50_C4", COCO_C4),
            ("mask_rcnn_R_50_FPN", FPN),
            ("retinanet_R_50_FPN", RETINANET),
        )
        for length, schedule in SCHEDULES.items()
    },
    **{
        f"coco_low_data/{name}_{percent}percent_12k.yaml": {
            **protocol,
            **SCHEDULES["12k"],
            "DATASETS.TRAIN": [f"coco_2017_train_{percent}percent_seed0"],
        }
        for name, protocol in (("mask_rcnn_R_50_FPN", FPN), ("retinanet_R_50_FPN", RETINANET))
        for percent in (1, 2, 5, 10)
    },
    "coco/keypoint_rcnn_R_50_FPN_2x.yaml": {
        **FPN,
        **SCHEDULES["2x"],
        "MODEL.MASK_ON": False,
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
        "DATASETS.TRAIN": ["keypoints_coco_2017_train"],
        "DATASETS.TEST": ["keypoints_coco_2017_val"],
    },
    "voc/faster_rcnn_R_50_C4_24k.yaml": {
        **C4,
        "MODEL.MASK_ON": False,
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32)),
        "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
        "DATASETS.TEST": ["voc_2007_test"],
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.STEPS": [18000, 22000],
        "SOLVER.WARMUP_ITERS": 100,
    },
    "cityscapes/mask_rcnn_R_50_FPN_24k.yaml": {
        **FPN,
        **CITYSCAPES_TEST,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "INPUT.MIN_SIZE_TRAIN": list(range(800, 1025, 32)),
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "DATASETS.TRAIN": ["cityscapes_fine_instance_seg_train"],
        "DATASETS.TEST": ["cityscapes_fine_instance_seg_val"],
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.STEPS": [18000],
    },
    "cityscapes/semantic_segmentation_R_50_FCN.yaml": {  # MoCo's appendix
        **TRANSFER,
        **CITYSCAPES_TEST,
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.SEM_SEG_HEAD.NAME": "FCN16sHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
        "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
        "INPUT.MIN_SIZE_TRAIN": [1024 // 2, 1024 * 2],
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
        "INPUT.MAX_SIZE_TRAIN": 4096,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [769, 769],
        "DATASETS.TRAIN": ["cityscapes_fine_sem_seg_train"],
        "DATASETS.TEST": ["cityscapes_fine_sem_seg_val"],
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 90000,
        "SOLVER.STEPS": [63000, 81000],
    },
}
PRETRAINING = {
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
}


def merged(config, *settings):
    """A config as its files and the settings give it, before it is adapted to the machine."""
    return read_config(os.path.join(ROOT, "configs", config), settings)


DEFAULTS = get_cfg()
add_detco_config(DEFAULTS)
DEFAULTS = dict(flatten(DEFAULTS))


@pytest.mark.parametrize("config", PRETRAINING)
def test_the_papers_values_stand_after_merging(config):
    found = dict(flatten(merged(config)))
    assert {key: found[key] for key in PRETRAINING[config]} == PRETRAINING[config]


def unusual(values):
    return {key: value for key, value in values.items() if value != DEFAULTS[key]}


@pytest.mark.parametrize("config", TRANSFER_CONFIGS)
def test_a_protocol_differs_from_detectron2s_defaults_in_what_is_expected_and_nothing_else(config):
    expected = {**TRANSFER_CONFIGS[config], "OUTPUT_DIR": "output/" + os.path.splitext(config)[0]}
    assert unusual(dict(flatten(merged(config)))) == unusual(expected)


def test_no_protocol_is_without_expected_values():
    demo_and_short = {c for c in CONFIGS if c.split(os.sep)[0] in ("demo", "quick")}
    assert set(CONFIGS) - demo_and_short == set(PRETRAINING) | set(TRANSFER_CONFIGS)


@pytest.mark.parametrize("config", TRANSFER_CONFIGS)
def test_no_sync_bn_is_left_on_the_cpu(config):
    assert "SyncBN" in merged(config).dump()
    assert "SyncBN" not in load_config(config).dump()
