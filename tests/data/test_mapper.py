"""One file to four views."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import collate_views

from ..conftest import load_config
from . import test_decode

AUGMENTATION = ["INPUT.DETCO.AUGMENTATION"]


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return {"file_name": str(file)}


@pytest.fixture
def smooth_photo(tmp_path):
    """As a photograph is; noise would only show the resampling."""
    test_decode.photo((640, 480)).save(tmp_path / "smooth.png")
    return {"file_name": str(tmp_path / "smooth.png")}


def steps_of(transform):
    result = []
    for step in transform.transforms:
        result += step.transforms if isinstance(step, T.RandomApply) else [step]
    return {type(step).__name__: step for step in result}


def test_the_views_of_the_paper_have_its_sizes(photo):
    sample = DetCoDatasetMapper(load_config("detco.yaml"))(photo)
    assert sample["global_query"].shape == sample["global_key"].shape == (3, 224, 224)
    assert sample["local_query"].shape == sample["local_key"].shape == (9, 3, 64, 64)
    assert sample["global_key"].dtype == sample["local_query"].dtype == torch.uint8
    for view in ("local_query", "local_key"):
        assert sorted(sample[f"{view}/cells"].tolist()) == list(range(9))
    assert not torch.equal(sample["global_query"], sample["global_key"])
    assert not torch.equal(sample["local_query"], sample["local_key"])


@pytest.mark.parametrize("view, size, low", [("global_key", 224, 0.2), ("local_query", 255, 0.6)])
def test_the_chains_are_moco_v2_on_crops_of_the_paper(view, size, low):
    """Paper 3.4; of a local view they act on the whole crop, before it is cut."""
    drawn = DetCoDatasetMapper(load_config("detco.yaml")).views[view]
    steps = steps_of(drawn.chain)
    names = ["RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale"]
    assert list(steps) == [*names, "Lambda"]
    assert steps["RandomResizedCrop"].size == (size, size)
    assert steps["RandomResizedCrop"].scale == (low, 1.0)
    assert steps["ColorJitter"].brightness == steps["ColorJitter"].saturation == (0.6, 1.4)
    assert steps["ColorJitter"].hue == (-0.1, 0.1)
    assert steps["RandomGrayscale"].p == 0.2
    sigmas = [drawn.sigma() for _ in range(300)]
    assert 0.1 <= min(sigmas) < 0.2 and 1.9 < max(sigmas) <= 2.0


def test_randaugment_is_on_global_views_of_detco_aa_only(photo):
    mapper = DetCoDatasetMapper(load_config("detco_aa.yaml"))
    names = list(steps_of(mapper.views["global_query"].chain))
    assert names.index("RandAugment") < names.index("ColorJitter")
    assert "RandAugment" not in steps_of(mapper.views["local_key"].chain)
    assert mapper(photo)["global_query"].shape == (3, 224, 224)


@pytest.mark.parametrize("augmentation", ["pil", "fast", "device"])
def test_an_image_is_decoded_once(photo, monkeypatch, augmentation):
    calls, read = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args: calls.append(args) or read(*args))
    DetCoDatasetMapper(load_config("detco.yaml", *AUGMENTATION, augmentation))(photo)
    assert len(calls) == 1


def test_only_the_views_that_a_family_reads_are_made(photo):
    mapper = DetCoDatasetMapper(load_config("moco_v2.yaml"))
    sample = mapper(photo)
    assert set(sample) == {"file_name", "global_query", "global_key"}
    finished = mapper.finish(collate_views([sample]), torch.device("cpu"))
    assert set(finished) == {"global_query", "global_key"}


@pytest.mark.parametrize("augmentation", ["pil", "fast", "device"])
def test_bgr_is_the_same_view_with_its_channels_reversed(photo, augmentation):
    settings = ["detco.yaml", *AUGMENTATION, augmentation, "INPUT.FORMAT"]
    views = {order: draw(load_config(*settings, order), photo) for order in ("RGB", "BGR")}
    assert torch.equal(views["RGB"]["global_key"], views["BGR"]["global_key"].flip(0))
    assert torch.equal(views["RGB"]["local_key"], views["BGR"]["local_key"].flip(1))


def draw(cfg, image, seed=3):
    """The finished views of one image."""
    mapper = DetCoDatasetMapper(cfg)
    torch.manual_seed(seed)
    batch = collate_views([mapper(image)])
    views = mapper.finish(batch, torch.device("cpu"))
    return {name: view[0] for name, view in views.items() if "/" not in name}


def test_the_former_exact_views_are_those_of_pillow(smooth_photo, caplog):
    ours, theirs = (
        draw(load_config("detco.yaml", *AUGMENTATION, name), smooth_photo)
        for name in ("exact", "pil")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert '"exact" is gone; "pil" takes its place' in caplog.text


def test_fast_and_device_views_show_the_same_crop_in_nearly_the_same_colours(smooth_photo):
    errors = []
    for seed in range(12):
        views = {
            name: draw(load_config("detco.yaml", *AUGMENTATION, name), smooth_photo, seed)
            for name in ("pil", "fast", "device")
        }
        for name, view in views["pil"].items():
            fast, device = views["fast"][name].int(), views["device"][name].int()
            # OpenCV's blur works in fixed point
            assert (fast - device).abs().float().mean() < 1, (seed, name)
            errors.append((view.int() - fast).abs().float().mean().item())
    assert np.mean(errors) < 10, errors  # a view of another draw is about 50 away


def test_a_large_photo_is_decoded_smaller_where_no_view_can_see_it(tmp_path, monkeypatch):
    file = tmp_path / "large.jpg"
    Image.fromarray(np.zeros((2400, 3200, 3), dtype=np.uint8)).save(file)
    sizes = {}
    for name in ("pil", "fast", "device"):
        mapper = DetCoDatasetMapper(load_config("detco.yaml", *AUGMENTATION, name))
        sizes[name] = mapper.decode({"file_name": str(file)}).size
    # the smallest crop, 20 % at 3:4, is 1073 pixels wide: four times a view's 224
    assert sizes == {"pil": (3200, 2400), "fast": (800, 600), "device": (800, 600)}


def test_a_member_of_a_tar_file_is_read_like_a_file(tmp_path, photo):
    mapper = DetCoDatasetMapper(load_config("detco.yaml"))
    content = Path(photo["file_name"]).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(7) + content)
    image = {"file_name": "a.tar/x.png", "member": (str(tmp_path / "a.tar"), 7, len(content))}
    assert mapper.decode(image).tobytes() == mapper.decode(photo).tobytes()
    os.truncate(tmp_path / "a.tar", len(content))
    with pytest.raises(RuntimeError, match="'a.tar/x.png': the tar file ends within it"):
        mapper.decode(image)
