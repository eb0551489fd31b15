"""Every shipped YAML builds, and the paper's values stand after merging."""

import glob
import os

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from detco_d2.config import add_detco_config
from detco_d2.config import load_config as read_config
from detco_d2.config_files import flatten
from detco_d2.engine.pretrain import recipe_pairs

from .conftest import ROOT, load_config

IMAGENET = 1_281_167  # images
CONFIGS = sorted(
    os.path.relpath(path, os.path.join(ROOT, "configs"))
    for path in glob.glob(os.path.join(ROOT, "configs", "**", "*.yaml"), recursive=True)
    if not os.path.basename(path).startswith("Base-")
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_builds(config):
    cfg = load_config(config)
    if cfg.MODEL.META_ARCHITECTURE == "DetCo":
        cfg.merge_from_list(recipe_pairs(cfg, IMAGENET))
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


def test_every_config_is_read_again_from_its_own_dump(tmp_path):
    for config in CONFIGS:
        cfg = read_config(os.path.join(ROOT, "configs", config))
        (tmp_path / "config.yaml").write_text(cfg.dump())
        assert read_config(str(tmp_path / "config.yaml")) == cfg, config
    plain = get_cfg().dump()  # of another program: two keys have one list as their default
    (tmp_path / "config.yaml").write_text(plain)
    assert "*id001" in plain and read_config(str(tmp_path / "config.yaml")).VERSION == 2


def merged(config, *settings):
    """A config as its files and the settings give it, before it is adapted to the machine."""
    return read_config(os.path.join(ROOT, "configs", config), settings)


DEFAULTS = get_cfg()
add_detco_config(DEFAULTS)
DEFAULTS = dict(flatten(DEFAULTS))


@pytest.mark.parametrize("config", PRETRAINING)
def test_the_papers_values_stand_after_merging(config):
    cfg = merged(config)
    cfg.merge_from_list(recipe_pairs(cfg, IMAGENET))
    found = dict(flatten(cfg))
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
