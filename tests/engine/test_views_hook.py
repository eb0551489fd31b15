"""The picture of the views shows the pixels that enter the network, at their places."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from PIL import Image

from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import collate_views
from detco_d2.engine import views_hook
from detco_d2.engine.views_hook import GAP, MARGIN, TITLE_HEIGHT, ViewsHook, paint_views

from ..conftest import load_config, make_batch
from .test_pretrain import make_trainer


def with_cells(batch):
    cells = {
        f"{view}/cells": torch.stack([torch.randperm(9) for _ in batch[view]])
        for view in batch
        if view.startswith("local")
    }
    return {**batch, **cells}


def places(picture, columns, side):
    """The cells of the table, enlarged as they are: (columns, rows) of images."""
    step = side + MARGIN
    assert picture.shape[1] == MARGIN + columns * step
    table = picture[TITLE_HEIGHT + MARGIN :, MARGIN:]
    return [
        [table[y : y + side, x : x + side] for y in range(0, len(table), step)]
        for x in range(0, columns * step, step)
    ]


def patches_of(board, side, factor):
    board, step = board[::factor, ::factor], side + GAP
    return [
        board[y : y + side, x : x + side].transpose(2, 0, 1)
        for y in range(0, 3 * step, step)
        for x in range(0, 3 * step, step)
    ]


def test_the_pictures_pixels_are_those_of_the_views_and_every_patch_is_at_its_cell():
    batch = with_cells(make_batch(3))  # 48 and 3 * 16 + 4 pixels: four and three times as large
    picture = paint_views(batch, "RGB")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    columns = places(picture, 6, 192)
    for column, view in zip(columns[:2], ("global_query", "global_key")):
        for i in range(2):
            expected = batch[view][i].permute(1, 2, 0).numpy()
            assert np.array_equal(column[i][::4, ::4], expected)
    for k, view in enumerate(("local_query", "local_key")):
        for i in range(2):
            entered = patches_of(columns[2 + 2 * k][i], 16, 3)
            original = patches_of(columns[3 + 2 * k][i], 16, 3)
            assert np.array_equal(entered, batch[view][i].numpy())
            for patch, cell in zip(batch[view][i].numpy(), batch[f"{view}/cells"][i]):
                assert np.array_equal(original[cell], patch)


@pytest.mark.parametrize("augmentation", ["pil", "fast", "device"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_a_mapped_gradient_is_in_order_and_in_its_colours(tmp_path, augmentation, image_format):
    """Red grows downwards, green to the right: so do the means of the patches in original order."""
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[:, None], ramp[None]
    file = tmp_path / "ramp.png"
    Image.fromarray(pixels).save(file)
    settings = ["INPUT.FORMAT", image_format, "INPUT.DETCO.AUGMENTATION", augmentation]
    for name in ("FLIP", "COLOR_JITTER", "GRAYSCALE"):
        settings += [f"INPUT.DETCO.{name}_PROB", 0.0]
    mapper = DetCoDatasetMapper(load_config("detco.yaml", *settings))
    torch.manual_seed(0)
    batch = mapper.finish(collate_views([mapper({"file_name": str(file)})]), torch.device("cpu"))
    picture = paint_views(batch, image_format)
    columns = places(picture, 6, 224)
    for entered, original in (columns[2:4], columns[4:6]):
        grid = np.mean(patches_of(original[0], 64, 1), axis=(2, 3)).reshape(3, 3, 3)  # y, x, RGB
        assert (np.diff(grid[..., 0], axis=0) > 10).all()
        assert (np.diff(grid[..., 1], axis=1) > 10).all() and (grid[..., 2] < 3).all()
        shuffled = np.mean(patches_of(entered[0], 64, 1), axis=(2, 3)).reshape(3, 3, 3)
        assert not np.array_equal(shuffled, grid)


def test_moco_has_two_columns():
    batch = {name: view for name, view in make_batch(2).items() if name.startswith("global")}
    size = 2 * (192 + MARGIN) + MARGIN
    assert paint_views(batch, "RGB").shape == (TITLE_HEIGHT + size, size, 3)


def pictures_of(folder):
    return sorted(path.name for path in Path(folder, "views").iterdir())


def test_the_first_picture_shows_what_entered_the_step(scenes, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    entered, drawn = [], []
    trainer = make_trainer(scenes, tmp_path, 2, "SOLVER.ACCUMULATION_STEPS", 2)
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: entered.append(batch) or forward(batch)
    monkeypatch.setattr(
        views_hook, "paint_views", lambda b, f: drawn.append(b) or paint_views(b, f)
    )
    trainer.train()
    assert pictures_of(tmp_path) == ["iteration_0000000.png"]
    assert len(entered) == 4 and len(drawn) == 1
    assert drawn[0] is entered[1]  # the last part of the first step, not a copy
    assert trainer._trainer.views is None
    expected = paint_views(entered[1], "RGB")
    file = tmp_path / "views" / "iteration_0000000.png"
    assert np.array_equal(np.asarray(Image.open(file)), expected)
    assert f"The views of iteration 0: {file}" in caplog.text


def test_pictures_come_with_a_period_on_request_and_after_a_resume(scenes, tmp_path):
    moco = ["MODEL.DETCO.FAMILIES", ["gg"], "MODEL.DETCO.STAGES", ["res5"]]
    moco += ["MODEL.DETCO.STAGE_WEIGHTS", [1.0]]
    first = make_trainer(scenes, tmp_path, 3, "VIS_PERIOD", 2, *moco)
    first.train()
    assert pictures_of(tmp_path) == ["iteration_0000000.png", "iteration_0000002.png"]
    second = make_trainer(scenes, tmp_path, 6, *moco)
    second.resume_or_load(resume=True)
    before_step = second.before_step

    def ask():
        if second.iter == 4:
            (tmp_path / "show_views").touch()
        before_step()

    second.before_step = ask
    second.train()
    assert pictures_of(tmp_path)[2:] == ["iteration_0000003.png", "iteration_0000004.png"]
    assert not (tmp_path / "show_views").exists()


def test_a_picture_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "views").write_text("where a folder should be")
    step = SimpleNamespace(views={"global_query": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)})
    hook = ViewsHook(step, str(tmp_path), "RGB", 0)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=3, start_iter=3, storage=storage)
        hook.before_step()
        assert step.keep_views
        hook.after_step()
    assert "Cannot write the views into" in caplog.text and "iteration_0000003.png" in caplog.text
    assert os.listdir(tmp_path) == ["views"] and step.views is None
