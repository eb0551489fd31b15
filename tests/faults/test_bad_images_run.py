"""Whole runs on folders with broken images: counted, listed, and stopped when they are too many."""

import json
from pathlib import Path

import pytest
import torch

from detco_d2.engine.guard import BadImages
from detco_d2.engine.pretrain import PretrainTrainer

from ..conftest import tiny_config
from ..engine.test_pretrain import assert_same_state, straight_and_resumed
from .harness import command, finish
from .test_images import BROKEN, write_images


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


def make(folder, output, iterations, *settings):
    output.mkdir(exist_ok=True)
    words = ["DATASETS.TRAIN", (str(folder),), "OUTPUT_DIR", str(output)]
    words += ["SOLVER.MAX_ITER", iterations, "DATALOADER.MAX_BAD_FRACTION", 0.2]
    return PretrainTrainer(tiny_config(*words, *settings))


def listed(output):
    return [json.loads(line) for line in (output / "bad_images.txt").read_text().splitlines()]


def test_three_broken_images_of_twenty_are_skipped_counted_and_listed(folder, tmp_path, caplog):
    torch.manual_seed(0)
    trainer = make(folder, tmp_path / "out", 10)
    trainer.train()
    found = listed(tmp_path / "out")
    assert sorted(Path(entry["file_name"]).name for entry in found) == BROKEN
    assert all(entry["reason"] for entry in found)
    assert trainer.storage.history("data/bad_images").latest() == 3
    assert caplog.text.count("is skipped") == 3  # each is said once, in two epochs
    assert trainer.model.queue.num_enqueued == 40  # every batch was full


def test_workers_do_not_change_the_outcome_and_a_resume_continues_it(folder, tmp_path):
    ends = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        root.mkdir()

        def start(name, iterations, root=root, workers=workers):
            torch.manual_seed(0)
            return make(folder, root / name, iterations, "DATALOADER.NUM_WORKERS", workers)

        straight, resumed = straight_and_resumed(start, 8, stop=4)
        assert listed(root / "straight") == listed(root / "resumed")
        assert straight.bad_images.reasons == resumed.bad_images.reasons
        ends.append(straight.model.state_dict())
    assert_same_state(*ends)


def test_too_many_broken_images_stop_every_process_with_their_number_and_names(folder, tmp_path):
    settings = ["SOLVER.MAX_ITER", 1000, "DATALOADER.MAX_BAD_FRACTION", 0.1]
    _, text = finish(command(str(folder), tmp_path / "out", *settings, processes=2), 120, want=1)
    assert "3 of 20 images cannot be read, more than the share of 0.1" in text
    assert "DATALOADER.MAX_BAD_FRACTION" in text and BROKEN[0] in text
    assert len(listed(tmp_path / "out")) == 3


def test_the_list_takes_any_name_one_image_a_line(tmp_path):
    names = ["a b.jpg", "ü.jpg", "new\nline.jpg", "\udcff.jpg", "../x.jpg", "n" * 300]
    bad = BadImages(100, 0.1, str(tmp_path / "bad_images.txt"))
    bad.add([(name, "why\nnot") for name in names])
    bad.add([(names[0], "again")])
    assert [entry["file_name"] for entry in listed(tmp_path)] == names
    with pytest.raises(RuntimeError, match="11 of 100 images"):
        bad.add([(f"{i}.jpg", "broken") for i in range(5)])


def test_a_list_that_was_cut_is_made_whole_by_a_resume_and_goes_with_a_new_run(tmp_path):
    file = tmp_path / "bad_images.txt"
    file.write_text('{"file_name": "a.jpg", "rea')
    bad = BadImages(100, 0.1, str(file))
    bad.reasons = {"a.jpg": "broken"}
    bad.write_list()
    assert listed(tmp_path) == [{"file_name": "a.jpg", "reason": "broken"}]
    BadImages(100, 0.1, str(file)).write_list()
    assert not file.exists()
