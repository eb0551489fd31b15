"""Wrong weights: each kind is refused with a reason, or taken as it should be."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_model

from detco_d2.engine.preflight import check_weights
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.frozen import check_complete

from ..conftest import R18, load_config
from ..weights.loading import FPN, SEGMENTATION, detectron2, load_into, save


def load(path):
    return load_into(FPN, path, *R18).state_dict()


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(1)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture(scope="module")
def detector():
    """A whole detector's state, on a ResNet-18 with an FPN."""
    torch.manual_seed(2)
    return build_model(load_config(FPN, *R18)).state_dict()


def same(state, resnet18, prefix="backbone.bottom_up."):
    expected = detectron2(resnet18)
    assert len(expected) == 100  # 20 convolutions and their norms
    return all(torch.equal(state[prefix + n], tensor.float()) for n, tensor in expected.items())


def test_resnet_18_into_resnet_50_is_refused_by_shapes_and_by_the_depth_to_set(tmp_path, resnet18):
    with pytest.raises(ValueError, match="MODEL.RESNETS {'DEPTH': 18, 'RES2_OUT_CH") as error:
        load_into(FPN, save(tmp_path, resnet18))
    assert "Only 77 of the model's 265 backbone tensors" in str(error.value)
    assert "res2.0.conv1.weight (64, 64, 3, 3), expected (64, 64, 1, 1)" in str(error.value)


@pytest.mark.parametrize("name, count", [("weights.pth", 100), ("weights.pkl", 60)])
def test_another_network_is_refused(tmp_path, name, count):
    """A .pkl counts as Caffe2's, which may lack the 40 running statistics."""
    content = torchvision.models.vgg11(num_classes=2).features.state_dict()
    if name.endswith(".pkl"):
        content = {key: value.numpy() for key, value in content.items()}
    path = save(tmp_path, content, name)
    with pytest.raises(ValueError, match=f"{count} of 100 backbone tensors did not load"):
        load(path)
    with pytest.raises(ValueError, match="no backbone of a known layout"):
        read_backbone(path)


def test_two_tensors_for_one_place_are_refused(tmp_path):
    """Detectron2 turns the first name into the second, and then fails an assertion."""
    tensor = torch.zeros(1).numpy()
    path = save(tmp_path, {"a_w": tensor, "a.weight": tensor}, "weights.pkl")
    with pytest.raises(ValueError, match="The weights' names fit no part of the model: AssertionE"):
        load(path)


def test_of_another_detector_the_backbone_is_taken(tmp_path, detector):
    path = save(tmp_path, {"model": detector})
    settings = [*R18, "MODEL.RESNETS.RES5_DILATION", 1]
    found = load_into(SEGMENTATION, path, *settings).state_dict()
    for name in found:
        if name.startswith("backbone.") and "num_batches" not in name:
            source = name.replace("backbone.", "backbone.bottom_up.")
            assert torch.equal(found[name], detector[source]), name


@pytest.mark.parametrize(
    "content, keys",
    [({}, "[]"), ({"model": {}}, "['model']"), ({"epoch": 3, "args": {"lr": 1.0}}, "'epoch'")],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_a_file_without_tensors_is_refused_by_its_keys(tmp_path, content, keys, name):
    with pytest.raises(ValueError, match="has no tensors; its keys are") as error:
        load(save(tmp_path, content, name))
    assert keys in str(error.value)


def test_the_prefix_of_parallel_training_is_taken_off(tmp_path, resnet18, detector):
    path = save(tmp_path, {"state_dict": {f"module.{k}": v for k, v in resnet18.items()}})
    assert same(load(path), resnet18)
    for key, prefix in (("model", ""), ("model", "module."), ("state_dict", "module.")):
        found = load(save(tmp_path, {key: {prefix + k: v for k, v in detector.items()}}))
        assert all(torch.equal(found[name], detector[name]) for name in detector)


def test_half_precision_becomes_single(tmp_path, resnet18):
    halves = {name: v.half() if v.is_floating_point() else v for name, v in resnet18.items()}
    state = load(save(tmp_path, halves))
    assert state["backbone.bottom_up.stem.conv1.weight"].dtype == torch.float32
    assert same(state, halves)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused_by_tensor(tmp_path, resnet18, detector, value):
    broken = {name: tensor.clone() for name, tensor in resnet18.items()}
    broken["layer3.1.bn2.running_var"][7] = value
    path = save(tmp_path, broken)
    for read in (load, lambda path: check_complete(read_backbone(path))):
        with pytest.raises(ValueError, match="1 tensors of .* NaN or inf.*res4.1.conv2.norm.run"):
            read(path)
    whole = {**detector, "proposal_generator.rpn_head.conv.bias": torch.full((256,), value)}
    with pytest.raises(ValueError, match="1 tensors of .* NaN or infinity: .*rpn_head.conv.bias"):
        load(save(tmp_path, {"model": whole}))


def test_a_pycls_file_loads_by_its_names(tmp_path, detector):
    state = {name: tensor for name, tensor in detector.items() if "bottom_up" in name}
    content = {"model_state": {**state, "x.num_batches_tracked": torch.tensor(1)}}
    found = load(save(tmp_path, content, "a.pyth"))
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "spec, said",
    [(3, "3"), ({"INPUT.FORMAT": torch.zeros(2)}, "tensor"), ({"MODEL.PIXEL_STD": [None]}, "None")],
)
def test_input_settings_of_a_wrong_form_are_refused(tmp_path, resnet18, spec, said):
    path = save(tmp_path, {"model": resnet18, "input_spec": spec})
    with pytest.raises(ValueError, match=f"input_spec is .*{said}.*; it must hold settings"):
        load(path)


@pytest.mark.parametrize("path", ["no/such.pth", "no/such.pkl?matching_heuristics=True"])
def test_weights_that_are_not_there_are_said_before_any_process_starts(path):
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS: there is no file '/.*no/such.p"):
        check_weights(load_config(FPN, "MODEL.WEIGHTS", path))


@pytest.mark.parametrize("path", ["", "detectron2://x.pkl", __file__, f"{__file__}?a=b"])
def test_weights_that_may_be_there_are_left_to_the_checkpointer(path):
    assert check_weights(load_config(FPN, "MODEL.WEIGHTS", path)) is None
