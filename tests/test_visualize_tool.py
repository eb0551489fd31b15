"""The command that draws features: pictures come out, and mistakes are explained."""

import os
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision.models import resnet18

from detco_d2.data.synthetic import register_scenes
from detco_d2.engine.transfer import TransferTrainer
from detco_d2.reports import detections
from detco_d2.weights.checkpointer import BackboneCheckpointer
from detco_d2.weights.input_spec import InputSpec

from .conftest import call, load_config, load_tool


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


def test_all_pictures_appear_beside_the_weights(tool, monkeypatch, weights, photos):
    said = []
    monkeypatch.setattr(tool.logger, "warning", lambda *words: said.append(str(words)))
    names = ["--weights", "random", "--weights", f"a $name$={weights}"]
    call(tool, "all", *names, "--images", photos, "--count", 3)
    folder = weights.parent / "pictures"
    assert sorted(os.listdir(folder)) == ["neighbours.png", "pca.png"]
    sizes = {file.stem: Image.open(file).size for file in folder.iterdir()}
    assert sizes["pca"] == (5 * 200 + 40, 6 * 200 + 50)  # image and stages; images x weights
    assert sizes["neighbours"] == (4 * 200 + 40, 8 * 225 + 50)  # query and three; weights x stages
    for file in folder.iterdir():
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.std() > 20 and np.median(pixels) > 20
    assert all("broken.png" in line for line in said) and len(said) == 2


def test_random_is_as_deep_as_the_weights_beside_it(tool, monkeypatch, weights, photos):
    seen = {}

    def note(args, file):
        for name, path in args.weights.items():
            seen[name] = tool.build_backbone(args, path, ["res5"])

    monkeypatch.setitem(tool.KINDS, "pca", note)
    call(tool, "pca", "--weights", "random", "--weights", weights, "--images", photos)
    assert list(seen) == ["random", weights.parent.name]
    assert [backbone.channels["res5"] for backbone in seen.values()] == [512, 512]


def test_the_nearest_image_to_the_first_is_its_copy(tool, monkeypatch, weights, photos, tmp_path):
    drawn = []
    monkeypatch.setattr(tool, "plot_neighbours", lambda *words: drawn.extend(words))
    copy = tmp_path / "copy.png"
    Image.open(photos / "b.png").save(copy)
    words = ["--weights", weights, "--images", copy, photos, "--stages", "res4"]
    call(tool, "neighbours", *words, "--box", "0.5,0,1,0.5")
    _, pictures, patches, _ = drawn
    (found,) = patches.values()
    assert (pictures[0] == pictures[2]).all() and (found.boxes[0] == found.boxes[2]).all()
    assert found.similarity[2] == pytest.approx(1.0, abs=1e-5)
    assert max(found.similarity[[1, 3, 4]]) < 0.9999


@pytest.fixture(scope="module")
def detector(scenes, tmp_path_factory):
    """An output folder of train_net.py, of an earlier version that had another key."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = load_config("quick/faster_rcnn_R_18_FPN.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 4)
    cfg.DATASETS.TEST = (register_scenes(scenes, "test"),)
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 16
    model = TransferTrainer.build_model(cfg)
    BackboneCheckpointer(model, str(folder), input_spec=InputSpec(cfg)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump() + "OF_ANOTHER_VERSION: 1\n")
    return folder


def test_detections_are_drawn_under_the_labels(tool, monkeypatch, detector, scenes, tmp_path):
    drawn = []
    monkeypatch.setattr(detections, "show_picture", lambda axis, picture: drawn.append(picture))
    words = ["detections", "--weights", f"a={detector}/model_final.pth", "--output", tmp_path]
    call(tool, *words)
    assert len(drawn) == 8 and (tmp_path / "detections.png").is_file()
    first = read_image(DatasetCatalog.get(f"scenes_test@{scenes}")[0]["file_name"], "RGB")
    assert all(p.shape == first.shape and (p != first).any() for p in drawn[:2])  # with boxes


@pytest.mark.parametrize(
    "words, message",
    [
        (["pca", "--weights", "random", "--output", "x"], "--images names no file or folder"),
        (["pca", "--weights", "random", "--images", "PHOTOS"], "names no file"),
        (["detections", "--weights", "random", "--weights", "WEIGHTS"], "has learnt no boxes"),
        (["detections", "--weights", "WEIGHTS"], "config.yaml"),
        (["pca", "--weights", "WEIGHTS", "--images", "absent"], "absent.* is not there"),
        (["pca", "--weights", "a=/no/file.pth", "--images", "PHOTOS"], "/no/file.pth"),
        (["pca", "--weights", "WEIGHTS", "--images", "PHOTOS/broken.png"], "broken.png"),
        (["pca", "--weights", "WEIGHTS", "--weights", "WEIGHTS", "--images", "PHOTOS"], "twice"),
        (["neighbours", "--weights", "WEIGHTS", "--images", "PHOTOS/a.png"], "more --images"),
    ],
)
def test_mistakes_are_said(tool, monkeypatch, weights, photos, tmp_path, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    names = {"WEIGHTS": str(weights), "PHOTOS": str(photos)}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    with pytest.raises(SystemExit) as stopped:
        call(tool, *words)
    said = str(stopped.value) + capsys.readouterr().err
    assert re.search(message, said), said
