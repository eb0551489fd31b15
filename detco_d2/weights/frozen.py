"""A backbone as a function: weights by path, images in, feature maps out."""

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone
from torch import nn

from .backbone import Backbone, place_backbone, read_backbone, refuse_nonfinite
from .input_spec import TORCHVISION_SPEC
from .names import describe_resnet
from .report import load_report

STAGES = ("res2", "res3", "res4", "res5")


class FrozenBackbone(nn.Module):
    """A ResNet that stays in evaluation mode, with the input settings of its weights."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, backbone: Any, spec: dict[str, Any], source: str) -> None:
        """
        Args:
            backbone: maps (N, 3, H, W) to a dict of stage outputs.
            spec: its input settings by config key.
            source: what its weights are, in words.
        """
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.is_bgr = spec["INPUT.FORMAT"] == "BGR"
        self.channels = {name: shape.channels for name, shape in backbone.output_shape().items()}
        self.source = source
        for name in ("pixel_mean", "pixel_std"):
            value = torch.tensor(spec[f"MODEL.{name.upper()}"], dtype=torch.float64)
            self.register_buffer(name, value.view(-1, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenBackbone":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps by stage, of RGB images (0..255, any number type) of shape (N, 3, H, W)."""
        weight = next(self.backbone.parameters())
        images = images.to(weight.device, weight.dtype)
        if self.is_bgr:
            images = images.flip(1)
        mean, std = self.pixel_mean.to(images.dtype), self.pixel_std.to(images.dtype)
        return self.backbone((images - mean) / std)


def build_resnet(
    shape: dict[str, int], norm: str, stages: Iterable[str], stride_in_1x1: bool = False
) -> Any:
    """Detectron2's ResNet of some MODEL.RESNETS keys, with the outputs of these stages."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.update(NORM=norm, OUT_FEATURES=list(stages), STRIDE_IN_1X1=stride_in_1x1)
    if shape["DEPTH"] in (18, 34):
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.update(shape)
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def shape_of(backbone: Backbone) -> dict[str, int]:
    """The MODEL.RESNETS keys of a backbone; a ValueError if Detectron2 cannot build it."""
    shape = describe_resnet(backbone.tensors)
    if shape is None:
        raise ValueError(
            f"{backbone}: this is no ResNet, or a ResNet that Detectron2 cannot build; it has "
            "depths 18, 34, 50, 101 and 152, and basic blocks of 64 channels only."
        )
    return shape


def _unfilled(backbone: Backbone, stages: Iterable[str] = STAGES) -> Any:
    """The ResNet that a backbone's tensors should fill, with others."""
    norm = "BN" if "stem.conv1.norm.running_mean" in backbone.tensors else "GN"
    stride_in_1x1 = bool(backbone.spec["MODEL.RESNETS.STRIDE_IN_1X1"])
    return build_resnet(shape_of(backbone), norm, stages, stride_in_1x1)


def check_complete(backbone: Backbone) -> str:
    """The load report of a backbone against the ResNet of its depth and width.

    Raises:
        ValueError: a tensor is missing or holds NaN, or this is no ResNet.
    """
    found = backbone.tensors
    refuse_nonfinite(found, backbone)
    if "res2.0.conv1.weight" not in found:  # of a pretraining of this project
        return f"{len(found)} backbone tensors (no ResNet, so not checked against one)."
    with torch.device("meta"):  # shapes are all that is asked for
        state = _unfilled(backbone).state_dict()
    placed = place_backbone(backbone, {f"backbone.{name}": state[name] for name in state})
    return (
        f"{load_report(found, found, backbone.unused)}\n{len(placed)} of {len(placed)} backbone "
        f"tensors of ResNet-{shape_of(backbone)['DEPTH']} matched."
    )


def frozen_backbone(path: str, stages: Iterable[str] = STAGES) -> FrozenBackbone:
    """The ResNet or ResNeXt of a weight file of any layout that :func:`read_backbone` knows.

    Raises:
        FileNotFoundError, ValueError: no such file, no whole backbone, or none of a ResNet.
    """
    backbone = read_backbone(path)
    frozen = FrozenBackbone(_unfilled(backbone, stages), backbone.spec, backbone.source)
    frozen.load_state_dict(place_backbone(backbone, frozen.state_dict()), strict=False)
    return frozen


def random_backbone(depth: int, seed: int = 0, stages: Iterable[str] = STAGES) -> FrozenBackbone:
    """The ResNet of a depth as Detectron2 initialises it: what trained ones are compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_resnet({"DEPTH": depth}, "BN", stages)
    return FrozenBackbone(model, TORCHVISION_SPEC, f"random ResNet-{depth}, seed {seed}")


def random_backbone_like(
    path: str, seed: int = 0, stages: Iterable[str] = STAGES
) -> FrozenBackbone:
    """A random ResNet as deep as that of a weight file; raises as :func:`frozen_backbone`."""
    return random_backbone(shape_of(read_backbone(path))["DEPTH"], seed, stages)
