"""A backbone as a function: weights by path, images in, feature maps out."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .backbone import build_resnet, load_backbone, norm_of, place_backbone
from .input_spec import TORCHVISION_SPEC
from .names import describe_resnet

STAGES = ("res2", "res3", "res4", "res5")


class FrozenBackbone(nn.Module):
    """A ResNet in evaluation mode, with the input settings that its weights were trained with.

    Attributes:
        channels: of each stage, by name.
        source: what its weights are, in words.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, backbone: Any, spec: dict[str, Any], source: str) -> None:
        """
        Args:
            backbone: maps (N, 3, H, W) to a dict of stage outputs.
            spec: its input settings, see :mod:`detco_d2.weights.input_spec`.
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
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: RGB, 0..255, of shape (N, 3, H, W) and any number type.

        Returns:
            the feature map of each stage, of shape (N, C, H / stride, W / stride).
        """
        weight = next(self.backbone.parameters())
        images = images.to(weight.device, weight.dtype)
        if self.is_bgr:
            images = images.flip(1)
        mean, std = self.pixel_mean.to(images.dtype), self.pixel_std.to(images.dtype)
        return self.backbone((images - mean) / std)


def frozen_backbone(path: str, stages: Iterable[str] = STAGES) -> FrozenBackbone:
    """The ResNet or ResNeXt of a weight file, of any format that :func:`load_backbone` reads.

    Args:
        path: a weight file.
        stages: whose outputs to give.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_backbone`; or the backbone is no ResNet, or
            misses tensors.
    """
    tensors, source, spec = load_backbone(path)
    spec = {**TORCHVISION_SPEC, **spec}
    shape = describe_resnet(tensors)
    if shape is None:
        raise ValueError(f"{path!r} has a backbone that is no ResNet or ResNeXt ({source}).")
    stride_in_1x1 = bool(spec["MODEL.RESNETS.STRIDE_IN_1X1"])
    model = build_resnet(shape, norm_of(tensors), list(stages), stride_in_1x1)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    placed = place_backbone(tensors, state, repr(path))
    model.load_state_dict({n.removeprefix("backbone."): t for n, t in placed.items()}, strict=False)
    return FrozenBackbone(model, spec, source)


def random_backbone(depth: int, seed: int = 0, stages: Iterable[str] = STAGES) -> FrozenBackbone:
    """The ResNet of a depth as Detectron2 initialises it: what trained ones are compared with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_resnet({"DEPTH": depth}, "BN", list(stages))
    return FrozenBackbone(model, TORCHVISION_SPEC, f"random ResNet-{depth}, seed {seed}")


def random_backbone_like(
    path: str, seed: int = 0, stages: Iterable[str] = STAGES
) -> FrozenBackbone:
    """A random ResNet as deep as that of a weight file.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_backbone`; or the backbone is no ResNet.
    """
    shape = describe_resnet(load_backbone(path)[0])
    if shape is None:
        raise ValueError(f"{path!r} has no ResNet or ResNeXt, so no depth for a random one.")
    return random_backbone(shape["DEPTH"], seed, stages)
