"""The C4 heads with the extra norm."""

import pytest
import torch
from detectron2.modeling import build_model

from ..conftest import load_config

C4 = "coco/mask_rcnn_R_50_C4_1x.yaml"


def test_a_norm_of_2048_channels_follows_res5():
    heads = build_model(load_config(C4)).roi_heads
    assert isinstance(heads.res5.norm, torch.nn.BatchNorm2d)
    assert heads.res5.norm.num_features == 2048
    assert list(heads.res5.children())[-1] is heads.res5.norm
    torch.manual_seed(0)
    out = heads.res5(torch.randn(4, 1024, 6, 6))
    assert out.mean().abs() < 1e-3  # normalised in training, unlike a residual block's output


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_block_depths_are_refused_by_name(depth):
    cfg = load_config(C4, "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    with pytest.raises(ValueError, match=f"ResNet-{depth}"):
        build_model(cfg)
