"""Name maps, against the real models of both libraries."""

import pytest
import torch

from detco_d2.weights.names import backbone_slots, describe_resnet, differences


def test_slots_leave_out_the_fpn_and_the_extra_norm():
    names = ["backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output2.weight", "rpn_head.x"]
    assert backbone_slots(names) == {"stem.conv1.weight": [names[0]]}
    names = ["backbone.stem.conv1.weight", "roi_heads.res5.0.conv1.weight"]
    slots = backbone_slots([*names, "roi_heads.res5.norm.weight"])
    assert slots == {"stem.conv1.weight": [names[0]], "res5.0.conv1.weight": [names[1]]}


@pytest.mark.parametrize(
    "first, second",
    [
        ((), (64, 64, 3, 3)),
        ((64,), (64, 64, 3, 3)),
        ((0, 64, 1, 1), (64, 64, 3, 3)),
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


def resnet(stem=(64, 3, 7, 7), norm=("weight", "bias", "running_mean", "running_var"), blocks=2):
    names = {
        f"res{i}.{b}.conv1.norm.{n}": 0 for i in (2, 3, 4, 5) for b in range(blocks) for n in norm
    }
    first = {"stem.conv1.weight": torch.empty(stem)}
    return {**first, "res2.0.conv1.weight": torch.empty(64, 64, 3, 3), **names}


@pytest.mark.parametrize(
    "found, said",
    [
        (resnet(), []),
        (resnet((64, 1, 7, 7)), ["Its first convolution has 1 input channels (1: trained on grey"]),
        (resnet((64, 3, 3, 3)), ["Its first convolution has 3 x 3 pixels (3 x 3: made for small"]),
        (resnet((32, 3, 7, 7)), ["Its first convolution has 32 output channels"]),
        (resnet(norm=("weight", "bias")), ["Its norm is GN, or batch norm that keeps no running"]),
        (resnet(norm=()), ["Its norm is none, or folded into the convolutions"]),
        (resnet(blocks=3), ["Its MODEL.RESNETS.DEPTH is 34, the model's 18"]),
    ],
)
def test_what_is_other_in_a_resnet_is_said(found, said):
    sentences = differences(found, resnet())
    assert len(sentences) == len(said)
    assert all(sentence.startswith(words) for sentence, words in zip(sentences, said))
