"""To torchvision, timm and safetensors and back: the same bits, and the same features."""

import json
import os

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone, to_torchvision, write_tensors
from detco_d2.weights.frozen import build_resnet, frozen_backbone
from detco_d2.weights.input_spec import MSRA_SPEC, TORCHVISION_SPEC
from detco_d2.weights.names import TO_DETECTRON2, TO_TORCHVISION, describe_resnet

from .loading import detectron2

SLOW = pytest.mark.slow
ARCHITECTURES = {
    "resnet18": {"DEPTH": 18},
    "resnet34": {"DEPTH": 34},
    "resnet50": {"DEPTH": 50},
    "resnet101": {"DEPTH": 101},
    "resnet152": {"DEPTH": 152},
    "resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "resnext101_32x8d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    "wide_resnet50_2": {"DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 128},
}
QUICK = ("resnet18", "resnext50_32x4d")
BY_COST = [pytest.param(a, marks=[] if a in QUICK else SLOW) for a in ARCHITECTURES]
STAGES = ("res2", "res3", "res4", "res5")


def theirs(library, name):
    """A model of torchvision or timm without its classifier."""
    if library == "timm":
        return timm.create_model(name, num_classes=0)
    model = getattr(torchvision.models, name)()
    model.fc = torch.nn.Identity()
    return model


def shaken(model, seed=0):
    """Weights in their scale, and norms with parameters and statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            if name.endswith(("bn2.weight", "bn3.weight")):
                tensor.mul_(0.2)  # or deep networks grow beyond all numbers
    return model


def features_of(model, images):
    """The four stages of a model of torchvision or timm."""
    act = getattr(model, "relu", None) or model.act1
    x, result = model.maxpool(act(model.bn1(model.conv1(images)))), {}
    for i, stage in enumerate(STAGES):
        x = result[stage] = getattr(model, f"layer{i + 1}")(x)
    return result


def normalised(pixels):
    """As users of both libraries do it: 0..1, minus the mean, over the deviation."""
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    return (pixels.double() / 255 - mean) / std


def compare(found, expected, atol=1e-9):
    for stage in STAGES:
        scale = expected[stage].abs().max()
        assert 1e-3 < scale < 1e6, stage
        torch.testing.assert_close(found[stage], expected[stage], rtol=1e-6, atol=atol * scale)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_go_both_ways_and_stand_for_the_same_shapes_in_all_three(name):
    with torch.device("meta"):
        models = [theirs("torchvision", name), theirs("timm", name)]
        ours = build_resnet(ARCHITECTURES[name], "BN", ["res5"]).state_dict()
    described = describe_resnet(ours)
    assert {key: described[key] for key in ARCHITECTURES[name]} == ARCHITECTURES[name]
    ours = {n: t.shape for n, t in ours.items() if "num_batches" not in n}
    for model in models:
        state = model.state_dict()
        names = [n for n in state if "num_batches" not in n]
        assert {TO_DETECTRON2[n]: state[n].shape for n in names} == ours
        assert [TO_TORCHVISION[TO_DETECTRON2[n]] for n in names] == names
    assert "fc.weight" not in TO_DETECTRON2
    assert "fpn_lateral2.weight" not in TO_TORCHVISION


@pytest.mark.parametrize("name", BY_COST)
def test_round_trips_are_equal_to_the_last_bit(tmp_path, name):
    """torchvision -> Detectron2 -> timm -> safetensors -> .pkl -> .pth -> torchvision."""
    first = {n: torch.rand(t.shape) for n, t in theirs("torchvision", name).state_dict().items()}
    first |= {n: torch.tensor(0) for n in first if "num_batches" in n}
    path = str(tmp_path / "0.pth")
    torch.save(first, path)
    for i, suffix in enumerate(("pth", "timm.safetensors", "safetensors", "pkl", "pth"), 1):
        backbone = read_backbone(path)
        os.remove(path)
        path = str(tmp_path / f"{i}.{suffix}")
        if "timm" in suffix:
            write_tensors(path, to_torchvision(backbone.tensors, backbone.spec))
        else:
            save_backbone(path, backbone.tensors, backbone.spec)
    backbone = read_backbone(path)
    assert backbone.source == "converted by detco_d2" and backbone.spec == TORCHVISION_SPEC
    last = to_torchvision(backbone.tensors, backbone.spec)
    assert last.keys() == first.keys()
    assert all(torch.equal(last[n], first[n]) and last[n].dtype == first[n].dtype for n in first)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("name", BY_COST)
def test_features_are_equal_in_both_frameworks_in_both_directions(tmp_path, library, name):
    source = shaken(theirs(library, name)).eval()
    path = str(tmp_path / "theirs.pth")
    torch.save(source.state_dict(), path)
    backbone = read_backbone(path)
    ours = build_resnet(ARCHITECTURES[name], "BN", STAGES).double().eval()
    ours.load_state_dict(backbone.tensors, strict=False)
    there = theirs(library, name).double().eval()
    # strict: nothing missing, nothing over
    there.load_state_dict(to_torchvision(backbone.tensors, backbone.spec))
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = features_of(source.double(), images)
        compare(ours(images), expected)
        compare(features_of(there, images), expected)


@pytest.mark.parametrize("library, name", [("timm", "resnet50"), ("torchvision", QUICK[1])])
def test_features_of_real_photographs_are_those_of_the_library(real_data, tmp_path, library, name):
    source = shaken(theirs(library, name)).eval()
    path = str(tmp_path / "theirs.safetensors")
    write_tensors(path, source.state_dict())
    backbone = frozen_backbone(path)
    folder = os.path.join(real_data, "coco", "val2017")
    for file in sorted(os.listdir(folder))[:3]:
        pixels = np.array(Image.open(os.path.join(folder, file)).convert("RGB"))
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, :224, :224]
        with torch.no_grad():
            expected = features_of(source.double(), normalised(images))
        compare(backbone.double()(images), expected)


def test_a_safetensors_file_says_its_settings_and_timm_reads_one(tmp_path):
    from safetensors import safe_open
    from timm.models import load_checkpoint

    torch.manual_seed(0)
    source = theirs("torchvision", "resnet18")
    backbone = detectron2(source.state_dict())
    spec = {**MSRA_SPEC, "MODEL.RESNETS.DEPTH": 18}
    path = str(tmp_path / "ours.safetensors")
    save_backbone(path, backbone, spec)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["input_spec"]) == spec
    found = read_backbone(path)
    assert found.own_spec == found.spec == spec and found.unused == {}
    path = str(tmp_path / "timm.safetensors")
    write_tensors(path, to_torchvision(backbone, TORCHVISION_SPEC))
    model = theirs("timm", "resnet18")
    load_checkpoint(model, path)  # strict
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_a_view_does_not_bring_its_whole_storage_along(tmp_path, suffix):
    path = tmp_path / f"view.{suffix}"
    write_tensors(str(path), {"a": torch.zeros(10**6)[:3], "b": torch.zeros(4, 5).t()})
    assert path.stat().st_size < 10**4


def test_what_a_pkl_cannot_hold_and_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a is bfloat16, which a .pkl cannot hold"):
        write_tensors(str(tmp_path / "a.pkl"), {"a": torch.zeros(1, dtype=torch.bfloat16)})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"must end in one of .pth, .pkl, .safetensors"):
        write_tensors(str(tmp_path / "a.npz"), {"a": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="no folder for the output .*no/a.safetensors'"):
        write_tensors(str(tmp_path / "no/a.safetensors"), {"a": torch.zeros(1)})


@pytest.mark.parametrize("key", MSRA_SPEC)
def test_input_settings_and_tensors_that_torchvision_has_not_are_refused(key):
    with pytest.raises(ValueError, match=f"trained with {key} .*their features would differ"):
        to_torchvision({"stem.conv1.weight": torch.zeros(64, 3, 7, 7)}, {key: MSRA_SPEC[key]})
    with pytest.raises(ValueError, match="nothing like .'res4.0.conv2_offset.weight'"):
        to_torchvision({"res4.0.conv2_offset.weight": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="have batch norm, and these weights have none"):
        to_torchvision({"stem.conv1.weight": torch.zeros(64, 3, 7, 7)}, {})  # of group norm
