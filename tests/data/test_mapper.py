"""One file to four views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import collate_views

from ..conftest import load_config

AUGMENTATION = ["INPUT.DETCO.AUGMENTATION"]


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return {"file_name": str(file)}


@pytest.fixture
def smooth_photo(tmp_path):
    """Blobs of colour, as a photograph has; noise would only show the resampling."""
    file = tmp_path / "smooth.png"
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((640, 480), Image.BICUBIC).save(file)
    return {"file_name": str(file)}


def steps_of(transform):
    result = []
    for step in transform.transforms:
        result += step.transforms if isinstance(step, T.RandomApply) else [step]
    return {type(step).__name__: step for step in result}


def test_the_views_of_the_paper_have_its_sizes(photo):
    sample = DetCoDatasetMapper(load_config("detco.yaml"))(photo)
    assert sample["global_query"].shape == sample["global_key"].shape == (3, 224, 224)
    assert sample["local_query"].shape == sample["local_key"].shape == (9, 3, 64, 64)
    assert all(
        sample[view].dtype == torch.uint8 for view in sample if view[-5:] in ("query", "_key")
    )
    for view in ("local_query", "local_key"):
        assert sorted(sample[f"{view}/cells"].tolist()) == list(range(9))
    assert not torch.equal(sample["global_query"], sample["global_key"])
    assert not torch.equal(sample["local_query"], sample["local_key"])


def test_the_global_chain_is_moco_v2(photo):
    steps = steps_of(DetCoDatasetMapper(load_config("detco.yaml")).plain["global_key"])
    assert list(steps) == [
        *["RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale"],
        "PilGaussianBlur",
    ]
    assert steps["RandomResizedCrop"].size == (224, 224)
    assert steps["RandomResizedCrop"].scale == (0.2, 1.0)
    assert steps["ColorJitter"].brightness == steps["ColorJitter"].saturation == (0.6, 1.4)
    assert steps["ColorJitter"].hue == (-0.1, 0.1)
    assert steps["RandomGrayscale"].p == 0.2
    assert steps["PilGaussianBlur"].sigma == (0.1, 2.0)


def test_the_local_chain_crops_at_least_60_percent_to_255(photo):
    """Paper 3.4; photometric transforms act on the whole 255 crop, before it is cut."""
    steps = steps_of(DetCoDatasetMapper(load_config("detco.yaml")).plain["local_query"])
    assert steps["RandomResizedCrop"].size == (255, 255)
    assert steps["RandomResizedCrop"].scale == (0.6, 1.0)
    assert "ColorJitter" in steps and "PilGaussianBlur" in steps


def test_randaugment_is_on_global_views_of_detco_aa_only(photo):
    mapper = DetCoDatasetMapper(load_config("detco_aa.yaml"))
    names = list(steps_of(mapper.plain["global_query"]))
    assert names.index("RandAugment") < names.index("ColorJitter")
    assert "RandAugment" not in steps_of(mapper.plain["local_key"])
    assert mapper(photo)["global_query"].shape == (3, 224, 224)


@pytest.mark.parametrize("augmentation", ["pil", "exact", "fast", "device"])
def test_an_image_is_decoded_once(photo, monkeypatch, augmentation):
    calls, read = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args: calls.append(args) or read(*args))
    DetCoDatasetMapper(load_config("detco.yaml", *AUGMENTATION, augmentation))(photo)
    assert len(calls) == 1


def test_only_the_views_that_a_family_reads_are_made(photo):
    sample = DetCoDatasetMapper(load_config("moco_v2.yaml"))(photo)
    assert set(sample) == {"file_name", "global_query", "global_key"}


@pytest.mark.parametrize("augmentation", ["pil", "exact", "fast", "device"])
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


@pytest.mark.parametrize("file", ["detco.yaml", "detco_aa.yaml"])
def test_exact_views_are_those_of_torchvision_within_one_grey_level(file, smooth_photo):
    for seed in range(12):
        plain = draw(load_config(file, *AUGMENTATION, "pil"), smooth_photo, seed)
        exact = draw(load_config(file, *AUGMENTATION, "exact"), smooth_photo, seed)
        for name in plain:
            assert (plain[name].int() - exact[name].int()).abs().max() <= 1, (seed, name)


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
    for name in ("exact", "fast", "device"):
        mapper = DetCoDatasetMapper(load_config("detco.yaml", *AUGMENTATION, name))
        sizes[name] = mapper.decode({"file_name": str(file)}).size
    # the smallest crop, 20 % at 3:4, is 1073 pixels wide: four times a view's 224
    assert sizes == {"exact": (3200, 2400), "fast": (800, 600), "device": (800, 600)}
