"""Weights and the config agree on the input; MSRA's Caffe2 files are the supervised baseline."""

import pickle
import re
import shlex

import pytest
import torch
from detectron2.modeling import build_model

from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone
from detco_d2.weights.input_spec import MSRA_SPEC, TORCHVISION_SPEC
from detco_d2.weights.names import backbone_slots

from ..conftest import load_config
from .loading import C4, FPN, SEGMENTATION, load_into

BLOBS = {"weight": "gamma", "bias": "beta"}  # of a norm; its statistics keep their names


def caffe2_name(name):
    """The blob of a ResNet tensor in MSRA's files, as Detectron2 offers them for download."""
    if match := re.fullmatch(r"(.*)\.norm\.(\w+)", name):
        blob, part = match[1], "bn_" + BLOBS.get(match[2], match[2])
        blob = blob.replace("stem.conv1", "res_conv1")
    else:
        blob, part = name.removesuffix(".weight").removeprefix("stem."), "w"
    blob = blob.replace("shortcut", "branch1")
    blob = re.sub(
        r"(res\d\.\d\.)conv([123])", lambda m: m[1] + "branch2" + "abc"[int(m[2]) - 1], blob
    )
    return f"{blob.replace('.', '_')}_{part}"


@pytest.fixture(scope="module")
def backbone():
    """A ResNet-50's 265 tensors with values of their own."""
    state = build_model(load_config(SEGMENTATION)).backbone.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def write_caffe2(backbone, path):
    blobs = {caffe2_name(name): tensor.numpy() for name, tensor in backbone.items()}
    blobs |= {"conv1_b": torch.zeros(64).numpy(), "fc1000_w": torch.zeros(1000, 2048).numpy()}
    path.write_bytes(pickle.dumps(blobs))
    return str(path)


@pytest.fixture(scope="module")
def msra_file(backbone, tmp_path_factory):
    return write_caffe2(backbone, tmp_path_factory.mktemp("msra") / "R-50.pkl")


SUPERVISED = [item for pair in MSRA_SPEC.items() for item in pair]


@pytest.mark.parametrize("config", [C4, FPN, SEGMENTATION])
def test_msra_weights_fill_the_whole_backbone_under_their_settings(msra_file, backbone, config):
    state = load_into(config, msra_file, *SUPERVISED).state_dict()
    slots = backbone_slots(state)
    assert set(slots) == set(backbone)
    for name, (target,) in slots.items():
        assert torch.equal(state[target], backbone[name]), target


def test_weights_of_another_input_are_refused_with_the_pairs_that_load_them(
    msra_file, backbone, tmp_path
):
    with pytest.raises(ValueError, match="'BGR' in the weights, 'RGB' here") as error:
        load_into(C4, msra_file)
    load_into(C4, msra_file, *shlex.split(str(error.value).split("by adding: ")[1]))
    path = str(tmp_path / "converted.pth")
    save_backbone(path, backbone, {**TORCHVISION_SPEC, "MODEL.RESNETS.DEPTH": 50})
    with pytest.raises(ValueError) as error:
        load_into(SEGMENTATION, path, *SUPERVISED, "MODEL.RESNETS.DEPTH", 101)
    load_into(SEGMENTATION, path, *shlex.split(str(error.value).split("by adding: ")[1]))


def test_files_with_folded_norms_load_and_half_a_norm_does_not(backbone, tmp_path):
    """Caffe2 detectors have scale and bias alone; the rest then stays at mean 0, variance 1."""
    folded = {name: tensor for name, tensor in backbone.items() if "running_" not in name}
    path = write_caffe2(folded, tmp_path / "folded.pkl")
    state = load_into(SEGMENTATION, path, *SUPERVISED).state_dict()
    assert torch.equal(
        state["backbone.res4.3.conv2.norm.weight"], backbone["res4.3.conv2.norm.weight"]
    )
    assert state["backbone.res4.3.conv2.norm.running_var"].eq(1).all()
    holes = {name: t for name, t in backbone.items() if name != "res4.3.conv2.norm.running_var"}
    with pytest.raises(ValueError, match="1 of 265 backbone tensors did not load"):
        load_into(SEGMENTATION, write_caffe2(holes, tmp_path / "holes.pkl"), *SUPERVISED)


def test_every_kind_of_file_says_its_input_settings(msra_file, backbone, tmp_path):
    found = read_backbone(msra_file)
    assert found.spec == MSRA_SPEC and found.source == "ResNet under the names of Caffe2 (MSRA)"
    assert found.tensors.keys() == backbone.keys()
    own = {**TORCHVISION_SPEC, "MODEL.PIXEL_STD": [1.0, 1.0, 1.0], "MODEL.RESNETS.DEPTH": 50}
    for name in ("converted.pth", "converted.pkl"):
        save_backbone(str(tmp_path / name), backbone, own)
        assert read_backbone(str(tmp_path / name)).spec == own
    path = tmp_path / "other.pth"
    tensors = {"layer1.0.conv1.weight": torch.zeros(1)}
    torch.save({"model": tensors, "iteration": 7, "input_spec": own}, path)
    assert read_backbone(str(path)).spec == own
    torch.save({"state_dict": tensors}, path)
    assert read_backbone(str(path)).spec == TORCHVISION_SPEC
