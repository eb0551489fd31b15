"""Name maps, against the real models of both libraries."""

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

from detco_d2.weights.names import (
    backbone_slots,
    describe_resnet,
    torchvision_to_detectron2,
)
from detco_d2.weights.sources import extract_backbone

DEPTHS = [18, 34, 50, 101, 152]


def torchvision_state(depth):
    return getattr(torchvision.models, f"resnet{depth}")().state_dict()


def detectron2_state(depth):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    state = build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_torchvision_tensor_has_its_place_and_shape_in_detectron2(depth):
    found, source, unused = extract_backbone(torchvision_state(depth))
    expected = detectron2_state(depth)
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in expected.items()}
    assert source == "ResNet under the names of torchvision and timm"
    assert unused == {"fc.*": 2}
    assert describe_resnet(found)["DEPTH"] == depth
    if depth == 50:
        assert len(found) == 265  # 53 convolutions and 53 norms of 4 tensors


@pytest.mark.parametrize(
    "name, expected",
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.bn2.weight", "res2.0.conv2.norm.weight"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.bias", "res3.0.shortcut.norm.bias"),
        ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
        ("bn1.num_batches_tracked", None),
        ("fc.weight", None),
        ("fc.0.bias", None),
    ],
)
def test_names_map_as_in_the_official_converter(name, expected):
    assert torchvision_to_detectron2(name) == expected


@pytest.mark.parametrize(
    "prefix",
    ["module.", "backbone.", "encoder_q.", "module.encoder_q.", "encoder_q.0.", "module.backbone."],
)
def test_any_prefix_is_found_and_the_momentum_copy_is_not_taken(prefix):
    state = torchvision_state(18)
    file = {prefix + n: v for n, v in state.items()}
    file |= {prefix.replace("_q", "_k") + n: v + 1 for n, v in state.items() if "_q" in prefix}
    file |= {"encoder_k." + n: v + 1 for n, v in state.items()}
    file |= {prefix + "fc.0.weight": state["fc.weight"], "queue": state["fc.weight"]}
    found = extract_backbone(file).tensors
    assert len(found) == len(detectron2_state(18))
    assert found["res2.0.conv1.weight"] is file[prefix + "layer1.0.conv1.weight"]


def test_detectron2_names_are_taken_as_they_are_and_c4_res5_from_its_roi_heads():
    state = detectron2_state(50)
    c4 = {("roi_heads." if n.startswith("res5") else "backbone.") + n: v for n, v in state.items()}
    c4["roi_heads.res5.norm.weight"] = state["stem.conv1.norm.weight"]
    assert extract_backbone(c4)[0].keys() == state.keys()
    fpn = {"backbone.bottom_up." + n: v for n, v in state.items()}
    fpn["backbone.fpn_lateral2.weight"] = state["stem.conv1.weight"]
    assert extract_backbone(fpn)[0].keys() == state.keys()


def test_no_backbone_is_seen_where_there_is_none():
    assert extract_backbone(torchvision.models.vgg11().state_dict()) is None


def test_slots_leave_out_the_fpn_and_the_extra_norm():
    names = ["backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output2.weight", "rpn_head.x"]
    assert backbone_slots(names) == {"stem.conv1.weight": [names[0]]}
    names = ["backbone.stem.conv1.weight", "roi_heads.res5.0.conv1.weight"]
    slots = backbone_slots([*names, "roi_heads.res5.norm.weight"])
    assert slots == {"stem.conv1.weight": [names[0]], "res5.0.conv1.weight": [names[1]]}


@pytest.mark.parametrize(
    "first, second",
    [((), (64, 64, 3, 3)), ((64,), (64, 64, 3, 3)), ((0, 64, 1, 1), (64, 64, 3, 3))]
    + [
        ((10**4, 64, 1, 1), (10**4, 64, 3, 3)),
        ((64, 64, 1, 1), ()),
        ((64, 64, 1, 1), (64, 0, 3, 3)),
    ],
)
def test_shapes_that_no_resnet_has_are_not_described(first, second):
    names = [f"res{i}.{block}.conv3.weight" for i in (2, 3, 4, 5) for block in (0, 1)]
    backbone = {name: torch.empty(1) for name in names} | {
        "res2.0.conv1.weight": torch.empty(first),
        "res2.0.conv2.weight": torch.empty(second),
    }
    assert describe_resnet(backbone) is None
    backbone["res2.0.conv1.weight"] = torch.empty(64, 64, 1, 1)
    backbone["res2.0.conv2.weight"] = torch.empty(64, 64, 3, 3)
    assert describe_resnet(backbone) == {"DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64}
