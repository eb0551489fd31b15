"""Mistakes in a config are said at once, by key, with what was seen and what there is."""

import os
import re

import pytest

from detco_d2.config import add_detco_config, load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.engine.preflight import check_learns

from ..conftest import ROOT

DETCO = os.path.join(ROOT, "configs", "detco.yaml")


def checked(file, *settings):
    cfg = load_config(file, settings)
    check_detco_config(cfg)
    return cfg


MISSPELT = {
    "MODEL.DETCOO.QUEUE_LENGTH": "MODEL.DETCO.QUEUE_LENGTH",
    "MODEL.DETCO.TEMP": "MODEL.DETCO.TEMPERATURE",
    "MODEL.DETCO.QUEUE_LENGHT": "MODEL.DETCO.QUEUE_LENGTH",
    "SOLVER.QUEUE_LENGTH": "MODEL.DETCO.QUEUE_LENGTH",
    "model.detco.temperature": "MODEL.DETCO.TEMPERATURE",
    "MODEL.DEVICE.cpu": "MODEL.DEVICE",
    "DATASETS.TRIAN": "DATASETS.TRAIN",
}


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_key_is_answered_with_the_right_one(key):
    with pytest.raises(ValueError) as error:
        checked(DETCO, key, "1")
    said, hint = str(error.value).split(" Did you mean ")
    assert said == f"Setting {key} '1': there is no key {key}."
    assert hint == f"{MISSPELT[key]}?"


@pytest.mark.parametrize(
    "lines, message",
    [
        ("MODEL:\n  DETCOO:\n    TEMPERATURE: 0.1", "MODEL.DETCOO. Did you mean MODEL.DETCO"),
        ("MODEL:\n  DETCO:\n    X: 1", "there is no key MODEL.DETCO.X."),
        ("SOLVER:\n  IMS_PER_BTCH: 1", "Did you mean SOLVER.IMS_PER_BATCH?"),
        ("SOLVER:\n  IMS_PER_BATCH: many", "IMS_PER_BATCH is many; it must be of type int"),
        ("SOLVER: 3", "SOLVER is 3; it must be a section of keys"),
        ("VERSION: 99", "v99"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, lines, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {DETCO}\n{lines}\n")
    with pytest.raises(ValueError) as error:
        checked(str(path))
    assert "mine.yaml" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["SOLVER.BASE_LR"], "the last of 1 words, 'SOLVER.BASE_LR', has no value"),
        (["SOLVER.BASE_LR=0.1"], "pairs KEY VALUE, with a blank between"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR is fast; it must be of type float, such as"),
        (["MODEL.DETCO.QUEUE_LENGTH", "8.5"], "QUEUE_LENGTH is 8.5; it must be of type int"),
        (["MODEL.DETCO.STAGES", "res5"], "STAGES is res5; it must be of type list"),
        (["MODEL.DETCO", "{}"], "MODEL.DETCO is a section; set its keys one by one"),
        (["_BASE_", "other.yaml"], "there is no key _BASE_"),
    ],
)
def test_a_setting_of_the_wrong_form_is_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(DETCO, *words)


def test_a_removed_switch_is_ignored_in_files_settings_and_copies(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(f"_BASE_: {DETCO}\nSOLVER:\n  FUSED_SGD: False\n")
    cfg = checked(str(path), "MODEL.DETCO.FUSED_LOSS", "False")
    add_detco_config(cfg)  # a second time, as a project over this one may do
    copy = cfg.clone()
    copy.merge_from_list(["MODEL.DETCO.CHANNELS_LAST", False])
    assert "FUSED" not in copy.dump() and "CHANNELS_LAST" not in copy.dump()


NAN, INF = float("nan"), float("inf")
IMPOSSIBLE = [
    ("MODEL.DETCO.STAGES", ["res2", "res3", "res4", "res6"], "['stem', 'res2', 'res3', 'res4'"),
    ("MODEL.DETCO.STAGES", ["stem", "res3", "res4", "res5"], "some of MODEL.RESNETS.OUT_FEATURES"),
    ("MODEL.DETCO.STAGES", [1, [2]], "a list of different backbone stages"),
    ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res9"], "some of ['stem', 'res2'"),
    ("MODEL.DETCO.STAGE_WEIGHTS", [0.1, 0.4, 0.7], "4 numbers >= 0, one for each of"),
    ("MODEL.DETCO.STAGE_WEIGHTS", [0.1, 0.4, 0.7, -1.0], "4 numbers >= 0"),
    ("MODEL.DETCO.STAGE_WEIGHTS", [0.1, 0.4, 0.7, NAN], "4 numbers >= 0"),
    ("MODEL.DETCO.FAMILIES", ["lg"], "one or more of ['gg', 'gl', 'll']"),
    ("MODEL.DETCO.EMBED_DIM", 0, "at least 1"),
    ("MODEL.DETCO.GLOBAL_HIDDEN_DIMS", [8], "empty (the stage's width), or 4 widths > 0"),
    ("MODEL.DETCO.LOCAL_HIDDEN_DIMS", [8, 8, 8, 0], "empty (the stage's width), or 4 widths"),
    ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", '"DetCo", as in configs/detco.yaml'),
    ("MODEL.DETCO.HEAD_NORM", "GN", '"", "BN", "SyncBN" or "LN"'),
    ("MODEL.DETCO.QUEUE_LENGTH", None, "at least 1"),
    ("MODEL.DETCO.MOMENTUM", NAN, "between 0 and 1"),
    ("MODEL.DETCO.TEMPERATURE", 0.0, "above 0"),
    ("MODEL.DETCO.TEMPERATURE", INF, "above 0"),
    ("MODEL.DETCO.CHECKPOINT_STAGES", [3], "a list of different parts of the backbone"),
    ("MODEL.PIXEL_MEAN", [1.0], "three numbers"),
    ("MODEL.PIXEL_STD", [58.395, 57.12, 0.0], "three numbers above 0"),
    ("INPUT.FORMAT", "L", '"RGB" or "BGR"'),
    ("INPUT.DETCO.GLOBAL_SIZE", 0, "at least 1"),
    ("INPUT.DETCO.GLOBAL_SCALE", [0.2, 0.5, 1.0], "two numbers, 0 < low <= high <= 1"),
    ("INPUT.DETCO.LOCAL_SCALE", [0.9, 0.6], "two numbers, 0 < low <= high <= 1"),
    ("INPUT.DETCO.BLUR_SIGMA", [0.1, INF], "two numbers, 0 < low <= high"),
    ("INPUT.DETCO.COLOR_JITTER", [0.4, 0.4, 0.4], "four numbers >= 0"),
    ("INPUT.DETCO.COLOR_JITTER", [0.4, 0.4, 0.4, 0.6], "the hue at most 0.5"),
    ("INPUT.DETCO.COLOR_JITTER_PROB", 1.1, "between 0 and 1"),
    ("INPUT.DETCO.GRAYSCALE_PROB", -0.1, "between 0 and 1"),
    ("INPUT.DETCO.BLUR_PROB", NAN, "between 0 and 1"),
    ("INPUT.DETCO.FLIP_PROB", 2.0, "between 0 and 1"),
    ("INPUT.DETCO.RANDAUGMENT_OPS", -1, "at least 0"),
    ("INPUT.DETCO.RANDAUGMENT_MAGNITUDE", 31, "between 0 and 30"),
    ("INPUT.DETCO.AUGMENTATION", "slow", '"pil", "fast" or "device"'),
    ("INPUT.DETCO.MIN_SIDE", 0, "at least 1"),
    ("INPUT.DETCO.MAX_PIXELS", 0, "at least 1"),
    ("DATALOADER.NUM_WORKERS", -1, "at least 0"),
    ("DATALOADER.MAX_BAD_FRACTION", 1.0, "at least 0 and below 1"),
    ("SOLVER.MAX_ITER", 0, "at least 1, or SOLVER.MAX_EPOCHS above 0"),
    ("SOLVER.MAX_EPOCHS", -1, "at least 0"),
    ("SOLVER.BASE_LR", NAN, "at least 0"),
    ("SOLVER.WEIGHT_DECAY", -0.1, "at least 0"),
    ("SOLVER.MOMENTUM", 1.0, "at least 0 and below 1"),
    ("SOLVER.LR_REFERENCE_BATCH", -1, "at least 0"),
    ("SOLVER.IMS_PER_BATCH", 0, "at least 1"),
    ("SOLVER.ACCUMULATION_STEPS", 0, "at least 1"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
    ("SOLVER.KEEP_CHECKPOINTS", 0, "at least 1"),
    ("SOLVER.MAX_FAILED_SAVES", -1, "at least 0"),
    ("SOLVER.MAX_NONFINITE_STEPS", -1, "at least 0"),
    ("TEST.KNN.PERIOD", -1, "at least 0"),
    ("TEST.KNN.NEIGHBOURS", 0, "at least 1"),
    ("TEST.KNN.MAX_IMAGES", 1, "at least 2"),
    ("SOLVER.COLLECTIVE_TIMEOUT", 0, "at least 1"),
]


@pytest.mark.parametrize("key, value, allowed", IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_what_is_allowed(key, value, allowed):
    said = re.escape(f"{key} is {value!r}; it must be ")
    with pytest.raises(ValueError, match=f"{said}.*{re.escape(allowed)}"):
        checked(DETCO, key, value)


@pytest.mark.parametrize("local, patch", [(256, 64), (255, 86), (0, 0)])
def test_the_jigsaw_must_fit_its_crop(local, patch):
    with pytest.raises(ValueError, match=rf"LOCAL_SIZE, PATCH_SIZE is \({local}, {patch}\)"):
        checked(DETCO, "INPUT.DETCO.LOCAL_SIZE", local, "INPUT.DETCO.PATCH_SIZE", patch)


@pytest.mark.parametrize(
    "settings",
    [
        ["SOLVER.MAX_ITER", 0, "SOLVER.MAX_EPOCHS", 1],
        ["MODEL.BACKBONE.NAME", "build_mine", "MODEL.DETCO.STAGES", ["a", "b", "c", "d"]],
        ["INPUT.DETCO.COLOR_JITTER", [0, 0, 0, 0.5], "MODEL.DETCO.MOMENTUM", 1.0],
        ["MODEL.DETCO.STAGES", ["res5"], "MODEL.DETCO.STAGE_WEIGHTS", [1]],
    ],
)
def test_values_at_the_edge_of_what_is_possible_pass(settings):
    assert checked(DETCO, *settings).VERSION == 2


FREEZE = ["MODEL.BACKBONE.FREEZE_AT", 2]


@pytest.mark.parametrize(
    "settings, processes, message",
    [
        (["SOLVER.IMS_PER_BATCH", 1], 1, "MODEL.RESNETS.NORM.* at least 2"),
        (["SOLVER.IMS_PER_BATCH", 4], 4, "at least 8"),
        (["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 4], 1, "or the steps fewer"),
        (["SOLVER.IMS_PER_BATCH", 4, "MODEL.RESNETS.NORM", "SyncBN"], 4, ""),
        (["SOLVER.IMS_PER_BATCH", 1, "MODEL.RESNETS.NORM", "SyncBN"], 1, "batch norm"),
        (["SOLVER.IMS_PER_BATCH", 1, "MODEL.RESNETS.NORM", "GN"], 1, ""),
        (FREEZE, 1, "FREEZE_AT is 2 and MODEL.WEIGHTS is empty"),
        ([*FREEZE, "MODEL.WEIGHTS", "a.pth"], 1, ""),
    ],
)
def test_what_cannot_learn_is_refused(caplog, settings, processes, message):
    cfg = load_config(DETCO, settings)
    if not message:
        return check_learns(cfg, processes)
    with pytest.raises(ValueError, match=message) as error:
        check_learns(cfg, processes)
    if "batch" in str(error.value):  # a detector goes on with it
        cfg.SOLVER.ACCUMULATION_STEPS = 1
        check_learns(cfg, cfg.SOLVER.IMS_PER_BATCH, refuse=False)
        assert "batch norm" in caplog.text or "SyncBN" in settings
