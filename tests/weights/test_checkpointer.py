"""A backbone goes from one side to the other without a tensor lost or a feature changed."""

import sys
from urllib.parse import urlparse

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model

from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.checkpointer import BackboneCheckpointer
from detco_d2.weights.input_spec import InputSpec

from .. import warm
from ..conftest import R18, load_config
from .loading import C4, FPN, load_into, save
from .test_export import shaken

RETINANET = "coco/retinanet_R_50_FPN_1x.yaml"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A ResNet-50 pretraining checkpoint and its query backbone."""
    path = str(tmp_path_factory.mktemp("weights") / "model_final.pth")
    cfg = load_config("detco.yaml", "MODEL.DETCO.QUEUE_LENGTH", 8, "MODEL.DETCO.EMBED_DIM", 8)
    torch.manual_seed(0)
    model, spec = shaken(build_model(cfg)), InputSpec(cfg)
    torch.save({"model": model.state_dict(), "iteration": 3, "input_spec": spec.state_dict()}, path)
    return path, model.query_encoder.backbone


def stages_of(detector, images):
    """res2..res5 of a detector's backbone, wherever it keeps them, in double precision."""
    detector.double().eval()
    bottom_up = getattr(detector.backbone, "bottom_up", detector.backbone)
    x, result = bottom_up.stem(images), {}
    for name in ("res2", "res3", "res4", "res5"):
        if hasattr(bottom_up, name):
            x = result[name] = getattr(bottom_up, name)(x)
    if "res5" not in result:
        for block in list(detector.roi_heads.res5.children())[:3]:
            x = block(x)
        result["res5"] = x
    return result


@pytest.mark.parametrize("config", [C4, FPN, RETINANET])
def test_the_detector_computes_the_features_of_the_pretrained_backbone(pretrained, config):
    path, backbone = pretrained
    torch.manual_seed(1)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone.double().eval()(images)
        found = stages_of(load_into(config, path), images)
    for stage in ("res2", "res3", "res4", "res5"):
        assert torch.allclose(found[stage], expected[stage], rtol=1e-6), stage


class ForeignDetector(torch.nn.Module):
    """Built as DensePose and Sparse R-CNN: Detectron2's FPN backbone, heads of its own."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.head = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(256, 8, 3)})


@pytest.mark.parametrize("extension", ["pth", "pkl"])
def test_a_converted_file_loads_by_detectron2_alone_and_by_us(pretrained, tmp_path, extension):
    path, backbone = pretrained
    output = str(tmp_path / f"converted.{extension}")
    tool = "tools/convert_weights.py"
    done = warm.run([sys.executable, tool, "--input", path, "--output", output])
    assert done.returncode == 0, done.stderr
    assert "265 of 265 backbone tensors of ResNet-50 matched" in done.stdout
    expected = backbone.res5[2].conv3.weight.float()
    plain = build_model(load_config(C4))
    DetectionCheckpointer(plain).load(output)
    assert torch.equal(plain.roi_heads.res5[2].conv3.weight, expected)
    ours = load_into(FPN, output)
    assert torch.equal(ours.backbone.bottom_up.res5[2].conv3.weight, expected)
    foreign = ForeignDetector(load_config(FPN))
    head = foreign.head.conv1.weight.clone()
    DetectionCheckpointer(foreign).load(output)
    found, weights = foreign.backbone.bottom_up.state_dict(), read_backbone(path).tensors
    assert len(weights) == 265
    assert all(torch.equal(found[name], weights[name].float()) for name in weights)
    assert torch.equal(foreign.head.conv1.weight, head)


def test_a_missing_tensor_is_an_error_that_names_it(pretrained, tmp_path):
    data = torch.load(pretrained[0], weights_only=True)
    del data["model"]["query_encoder.backbone.res4.3.conv2.norm.running_var"]
    data["model"]["query_encoder.backbone.res2.1.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(ValueError, match="263 of the model's 265") as error:
        load_into(FPN, save(tmp_path, data))
    assert "missing: res4.3.conv2.norm.running_var (256,)" in str(error.value)
    assert "res2.1.conv1.weight (64, 64, 1, 1), expected (64, 256, 1, 1)" in str(error.value)


@pytest.mark.parametrize(
    "settings, key",
    [
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT"),
        (["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]], "MODEL.PIXEL_STD"),
        (["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]], "MODEL.PIXEL_MEAN"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", True], "MODEL.RESNETS.STRIDE_IN_1X1"),
        (R18, "MODEL.RESNETS.DEPTH"),
    ],
)
def test_other_input_settings_are_refused_with_the_key_to_change(pretrained, settings, key):
    with pytest.raises(ValueError, match=f"by adding: {key}"):
        load_into(FPN, pretrained[0], *settings)


def test_a_detector_file_of_another_depth_does_not_leave_the_backbone_at_random(tmp_path):
    torch.manual_seed(0)
    source = build_model(load_config(FPN, *R18)).state_dict()
    source = {n: v for n, v in source.items() if "bottom_up.res4" not in n}
    with pytest.raises(ValueError, match="res4.0.conv1.weight"):
        load_into(FPN, save(tmp_path, {"model": source}), *R18)


def test_a_deeper_detector_is_not_cut_to_the_depth_of_the_model(tmp_path):
    state = build_model(load_config(FPN, *R18)).state_dict()
    state["backbone.bottom_up.res4.2.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="1 tensors of the weights' backbone have no place"):
        load_into(FPN, save(tmp_path, {"model": state}), *R18)


def test_matching_by_name_can_be_asked_for_in_the_path_as_on_detectron2s_main(tmp_path):
    path = save(tmp_path, {"model": {"a": torch.zeros(1)}})
    spec = InputSpec(load_config(FPN))
    checkpointer = BackboneCheckpointer(torch.nn.Linear(1, 1), input_spec=spec)
    assert "matching_heuristics" not in checkpointer._load_file(path)
    checkpointer._parsed_url_during_load = urlparse(f"{path}?matching_heuristics=True")
    assert checkpointer._load_file(path)["matching_heuristics"] is True
