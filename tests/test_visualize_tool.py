"""The command that draws features: pictures come out, and mistakes are explained."""

import os
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from .conftest import load_tool


@pytest.fixture(scope="module")
def tool():
    return load_tool("visualize")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("run") / "r18$.pth"  # dollars would be formulas to matplotlib
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise; d.png is c.png turned upside down."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        pixels = random.integers(0, 256, (8, 10, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((100, 80)).save(folder / name)
    Image.open(folder / "c.png").transpose(Image.Transpose.ROTATE_180).save(folder / "d.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def call(tool, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["visualize.py", *map(str, words), "--size", "64"])
    tool.main()


def test_all_pictures_appear_beside_the_weights(tool, monkeypatch, weights, photos, caplog):
    names = ["--weights", "random", "--weights", f"a $name$={weights}"]
    call(tool, monkeypatch, "all", *names, "--images", photos)
    folder = weights.parent / "pictures"
    assert sorted(os.listdir(folder)) == ["match.png", "neighbours.png", "pca.png"]
    sizes = {file.stem: Image.open(file).size for file in folder.iterdir()}
    assert sizes["pca"] == (5 * 200 + 40, 8 * 200 + 50)  # image and stages; images x weights
    assert sizes["neighbours"] == (4 * 200 + 40, 4 * 225 + 50)  # query and three; weights x stages
    assert all(np.asarray(Image.open(file).convert("L")).std() > 20 for file in folder.iterdir())


def test_random_is_as_deep_as_the_weights_beside_it(tool, monkeypatch, weights, photos, caplog):
    seen = {}
    monkeypatch.setitem(
        tool.KINDS, "pca", (lambda args, backbones: seen.update(backbones) or "", ["res5"], 1)
    )
    names = ["--weights", "random", "--weights", weights]
    call(tool, monkeypatch, "pca", *names, "--images", photos)
    assert list(seen) == ["random", weights.parent.name]
    assert [backbone.channels["res5"] for backbone in seen.values()] == [512, 512]


def test_the_nearest_image_to_a_query_is_its_copy(tool, monkeypatch, weights, photos, tmp_path):
    rows = []
    monkeypatch.setattr(tool, "draw_neighbours", lambda path, query, drawn: rows.extend(drawn))
    copy = tmp_path / "copy.png"
    Image.open(photos / "b.png").save(copy)
    words = ["--images", photos, "--query", copy, "--stages", "res4", "--count", "2"]
    call(tool, monkeypatch, "neighbours", "--weights", weights, *words)
    (row,) = rows
    best, second = [patch for _, patch in row.found]
    assert best.box == row.box and best.similarity == pytest.approx(1.0, abs=1e-5)
    assert second.similarity < 0.9999


def test_two_given_images_are_matched_cell_by_cell(tool, monkeypatch, weights, photos, tmp_path):
    panels = []
    monkeypatch.setattr(tool, "draw_matches", lambda path, title, rows: panels.extend(rows[0]))
    words = ["--pair", photos / "c.png", photos / "c.png", "--stages", "res3", "--lines", "10"]
    call(tool, monkeypatch, "match", "--weights", weights, *words, "--output", tmp_path)
    (panel,) = panels
    assert panel.right is None and panel.places[0].shape == (10, 2)
    assert (panel.places[0] == panel.places[1]).all()


def test_views_of_images_are_judged(tool, monkeypatch, weights, photos, tmp_path, caplog):
    words = ["--images", photos, "--stages", "res2", "--count", "1", "--output", tmp_path]
    call(tool, monkeypatch, "match", "--weights", weights, *words)
    assert "over 4 images" in caplog.text and (tmp_path / "match.png").is_file()
    assert "Skipped: Cannot read the image" in caplog.text and "broken.png" in caplog.text


@pytest.mark.parametrize(
    "words, message",
    [
        (["pca", "--weights", "random", "--output", "x"], "--images names no file or folder"),
        (["pca", "--weights", "random", "--images", "PHOTOS"], "--output must name a folder"),
        (["pca", "--weights", "WEIGHTS", "--images", "absent"], "absent.* is not there"),
        (["pca", "--weights", "a=/no/file.pth", "--images", "PHOTOS"], "/no/file.pth"),
        (["pca", "--weights", "WEIGHTS", "--images", "PHOTOS/broken.png"], "broken.png"),
        (["match", "--weights", "WEIGHTS", "--pair", "/no/a.jpg", "/no/b.jpg"], "/no/a.jpg"),
        (["pca", "--weights", "WEIGHTS", "--weights", "WEIGHTS", "--images", "PHOTOS"], "twice"),
        (["neighbours", "--weights", "WEIGHTS", "--images", "PHOTOS/a.png"], "more --images"),
        (["pca", "--weights", "WEIGHTS", "--images", "PHOTOS", "--box", "0,0,2,1"], "shares"),
        (["pca", "--weights", "WEIGHTS", "--images", "PHOTOS", "--count", "0"], "at least 1"),
    ],
)
def test_mistakes_are_explained(
    tool, monkeypatch, weights, photos, tmp_path, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    names = {"WEIGHTS": str(weights), "PHOTOS": str(photos)}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, *words)
    said = str(stopped.value) + capsys.readouterr().err
    assert re.search(message, said), said
