"""The FCN-16s head, and the segmentation network around it."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from detco_d2.modeling.fcn_head import FCN16sHead

from ..conftest import load_config

CONFIG = "cityscapes/semantic_segmentation_R_50_FCN.yaml"
IGNORED = 255


def small_head(**settings):
    torch.manual_seed(0)
    shape = ShapeSpec(channels=8, stride=16)
    sizes = dict(in_feature="res5", in_shape=shape, num_classes=5, conv_dim=4, loss_weight=1.0)
    return FCN16sHead(**{**sizes, "norm": "BN", "ignore_value": IGNORED, **settings})


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(load_config(CONFIG))


def test_the_head_is_the_one_of_the_protocol(network):
    head = network.sem_seg_head
    assert [(c.in_channels, c.out_channels) for c in head.convs] == [(2048, 256), (256, 256)]
    for conv in head.convs:
        assert (conv.kernel_size, conv.dilation, conv.padding) == ((3, 3), (6, 6), (6, 6))
        assert conv.bias is None and isinstance(conv.norm, torch.nn.BatchNorm2d)
        assert conv.activation(torch.tensor(-1.0)) == 0
    assert head.classifier.weight.shape == (19, 256, 1, 1)
    assert head.classifier.bias is not None


def test_the_backbone_has_stride_16_by_a_dilated_res5(network):
    assert network.backbone.output_shape()["res5"] == ShapeSpec(channels=2048, stride=16)
    for block in network.backbone.res5:
        assert (block.conv2.dilation, block.conv2.stride) == ((2, 2), (1, 1))
        assert block.conv1.stride == (1, 1)
    assert network.backbone.res4[0].conv2.stride == (2, 2)
    with torch.no_grad():
        assert network.backbone(torch.zeros(1, 3, 769, 641))["res5"].shape == (1, 2048, 49, 41)


@pytest.mark.parametrize("size", [(97, 129), (96, 128)])
def test_training_starts_at_chance_and_inference_gives_the_images_original_size(network, size):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 19, size, generator=generator)
    losses = network.train()([{"image": image, "sem_seg": labels}] * 2)
    assert list(losses) == ["loss_sem_seg"]
    assert losses["loss_sem_seg"].item() == pytest.approx(math.log(19), rel=0.05)
    with torch.no_grad():
        (result,) = network.eval()([{"image": image, "height": 200, "width": 300}])
    assert result["sem_seg"].shape == (19, 200, 300)


def test_logits_are_upsampled_bilinearly_by_the_stride_and_cut_to_the_targets():
    head = small_head().eval()
    features = {"res5": torch.randn(2, 8, 49, 3)}
    logits, losses = head(features)
    assert (logits.shape, losses) == ((2, 5, 784, 48), {})
    coarse = head.classifier(head.convs(features["res5"]))
    # half a pixel right of the middle between two coarse cells, hence 1/32 beyond the mean
    expected = coarse[..., 0, 0] * (1 / 2 - 1 / 32) + coarse[..., 0, 1] * (1 / 2 + 1 / 32)
    assert torch.allclose(logits[..., 0, 16], expected, atol=1e-6)
    targets = torch.randint(0, 5, (2, 769, 33))
    expected = torch.nn.functional.cross_entropy(logits[..., :769, :33], targets)
    assert torch.allclose(head.loss(logits, targets), expected)


def test_the_ignored_label_contributes_nothing():
    head = small_head()
    logits = torch.randn(1, 5, 32, 32, requires_grad=True)
    targets = torch.randint(0, 5, (1, 32, 32))
    targets[:, 10:] = IGNORED
    loss = head.loss(logits, targets)
    loss.backward()
    assert torch.allclose(loss, head.loss(logits[..., :10, :], targets[:, :10]))
    assert logits.grad[..., 10:, :].eq(0).all() and logits.grad[..., :10, :].ne(0).all()
    assert head.loss(logits, torch.full_like(targets, IGNORED)) == 0  # and not nan


def test_the_loss_falls_as_the_prediction_nears_the_target():
    targets = torch.randint(0, 5, (1, 32, 32))
    right = torch.nn.functional.one_hot(targets, 5).permute(0, 3, 1, 2).float()
    losses = [small_head().loss(scale * right, targets).item() for scale in (0, 1, 10, 100)]
    assert losses[0] == pytest.approx(math.log(5))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


def test_the_loss_has_its_weight_and_without_a_norm_the_convolutions_have_a_bias():
    features = {"res5": torch.randn(1, 8, 2, 2)}
    targets = torch.zeros(1, 32, 32, dtype=torch.long)
    once, thrice = (
        small_head(norm="", loss_weight=weight)(features, targets)[1]["loss_sem_seg"]
        for weight in (1.0, 3.0)
    )
    assert thrice.item() == pytest.approx(3 * once.item())
    assert small_head(norm="").convs[0].bias is not None


def test_training_without_labels_is_refused():
    with pytest.raises(ValueError, match="DATASETS.TRAIN has no semantic labels"):
        small_head()({"res5": torch.randn(1, 8, 2, 2)})


@pytest.mark.parametrize("features", [["res5", "res4"], [], ["p5"]])
def test_other_than_one_feature_map_of_the_backbone_is_refused(features):
    cfg = load_config(CONFIG, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features)
    with pytest.raises(ValueError, match=r"exactly one .* \['res5'\]"):
        build_model(cfg)
