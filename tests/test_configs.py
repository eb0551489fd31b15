"""Every shipped YAML builds, and the paper's values stand after merging."""

import glob
import os

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from detco_d2.config import add_detco_config, apply_supervised_baseline
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


with open(os.path.join(ROOT, "tests/fixtures/protocols.yaml")) as _file:
    EXPECTED = yaml.safe_load(_file)
PRETRAINING, TRANSFER_CONFIGS = EXPECTED["pretraining"], EXPECTED["transfer"]
for _name in [name for name in TRANSFER_CONFIGS if "{}" in name]:
    _values = TRANSFER_CONFIGS.pop(_name)
    for _percent in (1, 2, 5, 10):
        _data = {"DATASETS.TRAIN": [f"coco_2017_train_{_percent}percent_seed0"]}
        TRANSFER_CONFIGS[_name.format(_percent)] = {**_values, **_data}


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


SUPERVISED = {  # MSRA's ResNet-50: Detectron2's own defaults
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.SUPERVISED_BASELINE": True,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
}


@pytest.mark.parametrize("config", TRANSFER_CONFIGS)
def test_the_supervised_baseline_differs_in_the_input_and_in_the_size_of_c4_on_coco(config):
    cfg = merged(config, "MODEL.SUPERVISED_BASELINE", True)
    apply_supervised_baseline(cfg)
    expected = {**TRANSFER_CONFIGS[config], **SUPERVISED, "OUTPUT_DIR": cfg.OUTPUT_DIR}
    if "coco/mask_rcnn_R_50_C4" in config:
        expected["INPUT.MAX_SIZE_TRAIN"] = 1333
    assert unusual(dict(flatten(cfg))) == unusual(expected)


def test_the_supervised_switch_keeps_given_weights_and_does_nothing_when_off():
    cfg = merged("voc/faster_rcnn_R_50_C4_24k.yaml", "MODEL.WEIGHTS", "R-50.pkl")
    before = cfg.dump()
    apply_supervised_baseline(cfg)
    assert cfg.dump() == before
    cfg.MODEL.SUPERVISED_BASELINE = True
    apply_supervised_baseline(cfg)
    assert (cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT) == ("R-50.pkl", "BGR")
