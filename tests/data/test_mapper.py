"""One file to four views."""

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from PIL import Image
from torchvision import transforms as T

from detco_d2.data.mapper import DetCoDatasetMapper

from ..conftest import load_config


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
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
    assert all(sample[view].dtype == torch.uint8 for view in sample if view != "file_name")
    assert not torch.equal(sample["global_query"], sample["global_key"])
    assert not torch.equal(sample["local_query"], sample["local_key"])


def test_the_global_chain_is_moco_v2(photo):
    steps = steps_of(DetCoDatasetMapper(load_config("detco.yaml")).global_transform)
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
    steps = steps_of(DetCoDatasetMapper(load_config("detco.yaml")).local_transform)
    assert steps["RandomResizedCrop"].size == (255, 255)
    assert steps["RandomResizedCrop"].scale == (0.6, 1.0)
    assert "ColorJitter" in steps and "PilGaussianBlur" in steps


def test_randaugment_is_on_global_views_of_detco_aa_only(photo):
    mapper = DetCoDatasetMapper(load_config("detco_aa.yaml"))
    names = list(steps_of(mapper.global_transform))
    assert names.index("RandAugment") < names.index("ColorJitter")
    assert "RandAugment" not in steps_of(mapper.local_transform)
    assert mapper(photo)["global_query"].shape == (3, 224, 224)


def test_an_image_is_decoded_once(photo, monkeypatch):
    calls = []
    read = detection_utils.read_image
    monkeypatch.setattr(
        detection_utils, "read_image", lambda *args: calls.append(args) or read(*args)
    )
    DetCoDatasetMapper(load_config("detco.yaml"))(photo)
    assert len(calls) == 1


def test_only_the_views_that_a_family_reads_are_made(photo):
    sample = DetCoDatasetMapper(load_config("moco_v2.yaml"))(photo)
    assert set(sample) == {"file_name", "global_query", "global_key"}


def test_bgr_is_the_same_view_with_its_channels_reversed(photo):
    views = {}
    for order in ("RGB", "BGR"):
        torch.manual_seed(3)
        views[order] = DetCoDatasetMapper(load_config("detco.yaml", "INPUT.FORMAT", order))(photo)
    assert torch.equal(views["RGB"]["global_key"], views["BGR"]["global_key"].flip(0))
    assert torch.equal(views["RGB"]["local_key"], views["BGR"]["local_key"].flip(1))


def test_an_unreadable_file_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="broken.jpg"):
        DetCoDatasetMapper(load_config("detco.yaml"))({"file_name": str(broken)})
