"""Nearest neighbours while training: what they say, and that training does not see them."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch

from detco_d2.engine.knn import KNNHook, load_knn_halves
from detco_d2.engine.preflight import check_run
from detco_d2.probes.features import extract
from detco_d2.probes.labelled import LabelledImages
from detco_d2.probes.probes import knn
from detco_d2.weights.frozen import FrozenBackbone, frozen_backbone
from detco_d2.weights.input_spec import InputSpec

from ..conftest import R18, tiny_config
from ..faults.harness import command, finish
from ..pictures import save_image, write_colours
from .test_pretrain import assert_same_state, make_trainer


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Class folders of single-coloured images: what random features can tell apart."""
    return str(write_colours(tmp_path_factory.mktemp("colours"), 8))


def read_metrics(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line for line in lines}


@pytest.mark.parametrize("workers", [0, 2])
def test_training_does_not_see_the_hook(scenes, colours, tmp_path, workers):
    def run(name, *settings):
        every = ["DATALOADER.NUM_WORKERS", workers]
        trainer = make_trainer(scenes, tmp_path / name, 3, *every, *settings)
        trainer.train()
        return trainer

    plain = run("plain")
    watched = run("watched", "TEST.KNN.DATASET", colours, "TEST.KNN.PERIOD", 1)
    assert_same_state(plain.model.state_dict(), watched.model.state_dict())
    assert all(p.requires_grad for p in watched.model.query_encoder.parameters())
    assert watched.model.query_encoder.training
    assert watched.storage.latest()["knn/res2"][1] == 2


def test_the_class_is_found_in_colours_at_every_stage_and_period(scenes, colours, tmp_path, caplog):
    settings = ["TEST.KNN.DATASET", colours, "TEST.KNN.PERIOD", 2, "TEST.KNN.NEIGHBOURS", 5]
    with caplog.at_level(logging.INFO, "detco_d2"):
        make_trainer(scenes, tmp_path, 3, *settings).train()
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("k-NN ")]
    times = ["before training", "at iteration 1", "at iteration 2"]
    assert [text.split(":")[0] for text in said] == [f"k-NN {time}" for time in times]
    assert "6 images among 18" in said[0] and "chance" in said[0]
    last = read_metrics(tmp_path)[2]  # the writers' period is 20: of several they write the last
    for stage in ("res2", "res3", "res4", "res5"):
        assert f"{stage} 100.0 %" in said[0]
        assert last[f"knn/{stage}"] == 100


def test_what_random_weights_know_is_the_first_value_and_comes_once(scenes, boxes, tmp_path):
    settings = ["TEST.KNN.DATASET", boxes, "TEST.KNN.PERIOD", 50]
    trainer = make_trainer(scenes, tmp_path, 21, *settings)
    backbone = copy.deepcopy(trainer.model.query_encoder.backbone)
    start = FrozenBackbone(backbone, InputSpec(trainer.cfg).settings, "")
    trainer.train()
    assert read_metrics(tmp_path)[0]["knn/res3"] == value_of(start, boxes, "res3")
    resumed = make_trainer(scenes, tmp_path, 22, *settings)
    resumed.resume_or_load(resume=True)
    resumed.train()
    found = [i for i, line in read_metrics(tmp_path).items() if "knn/res3" in line]
    assert found == [0, 20, 21]


def test_without_a_period_the_last_iteration_alone_is_evaluated(scenes, colours, tmp_path):
    make_trainer(scenes, tmp_path, 3, "TEST.KNN.DATASET", colours).train()
    metrics = read_metrics(tmp_path)
    assert [i for i, line in metrics.items() if "knn/res5" in line] == [2]


@pytest.fixture(scope="module")
def boxes(scenes):
    """The training scenes under a name that a new process registers by itself."""
    root = Path(scenes)
    file = root / "annotations" / "instances_knn_12.json"
    file.write_bytes((root / "annotations" / "instances_train.json").read_bytes())
    (root / "knn_12").symlink_to(root / "train")
    return f"scenes_knn_12@{scenes}"


def value_of(backbone, data, stage):
    halves = load_knn_halves(tiny_config("TEST.KNN.DATASET", data))
    (x, n), (test_x, m) = (extract(backbone, LabelledImages(half, 48)) for half in halves)
    y, test_y = (torch.from_numpy(half.labels)[i] for half, i in zip(halves, (n, m)))
    return knn(x["average", stage], y, test_x["average", stage], test_y)


def test_two_processes_give_the_value_of_the_saved_weights(scenes, boxes, tmp_path):
    """Each process has running statistics of its own; a checkpoint has those of the first."""
    settings = [
        "SOLVER.MAX_ITER",
        2,
        "TEST.KNN.DATASET",
        boxes,
        "INPUT.DETCO.GLOBAL_SIZE",
        48,
        *R18,
    ]
    code, text = finish(command(f"{scenes}/train", tmp_path, *settings, processes=2))
    assert code == 0, text[-3000:]
    metrics, saved = read_metrics(tmp_path)[1], frozen_backbone(f"{tmp_path}/model_final.pth")
    for stage in ("res2", "res5"):
        assert metrics[f"knn/{stage}"] == value_of(saved, boxes, stage)


def test_a_folder_that_goes_away_does_not_end_training(scenes, tmp_path, caplog):
    for name in ("a", "b"):
        for i in range(3):
            save_image(tmp_path / "data" / name / f"{i}.png")
    settings = ["TEST.KNN.DATASET", str(tmp_path / "data"), "TEST.KNN.PERIOD", 1]
    trainer = make_trainer(scenes, tmp_path / "run", 1, *settings)
    hook = next(hook for hook in trainer._hooks if isinstance(hook, KNNHook))
    hook.before_train()
    for file in (tmp_path / "data").rglob("*.png"):
        file.unlink()
    hook.before_train = lambda: None
    trainer.train()
    assert "no image of a half of TEST.KNN.DATASET can be read" in caplog.text
    assert (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "neither a registered data set nor an existing"),
        (lambda root: save_image(root / "data" / "only" / "x.png"), "a probe needs two classes"),
    ],
)
def test_wrong_data_is_refused_before_any_process_starts(scenes, tmp_path, make, message):
    make(tmp_path)
    cfg = tiny_config("DATASETS.TRAIN", (scenes + "/train",))
    cfg.TEST.KNN.DATASET = str(tmp_path / "data")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        check_run(cfg, 1)
    assert "data'" in str(error.value)
