"""The FCN-16s head of MoCo's semantic segmentation protocol, which DetCo follows."""

# Shape shorthand in this module:
#   N: images, C: channels of the backbone's last stage, K: classes
#   H, W: the padded images' size in pixels, h, w: that of the features, H / 16 and W / 16

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn

_DILATION = 6  # MoCo's, after DeepLab's large field of view


class FCN16sHead(nn.Module):
    """Two dilated 3x3 convolutions and a classifier on one feature map of stride 16.

    For Detectron2's `SemanticSegmentor`, on a ResNet with MODEL.RESNETS.RES5_DILATION 2
    (MoCo, arXiv 1911.05722, appendix).
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_shape: ShapeSpec,
        num_classes: int,
        conv_dim: int,
        norm: str,
        ignore_value: int,
        loss_weight: float,
    ) -> None:
        """
        Args:
            in_feature, in_shape: the backbone's feature map, whose stride the logits lose again.
            num_classes, conv_dim, norm: K, channels of the two convolutions, a Detectron2 norm.
            ignore_value: label of the pixels without a class, and of padding.
        """
        super().__init__()
        self.in_feature = in_feature
        self.stride = in_shape.stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.convs = nn.Sequential()
        for channels in (in_shape.channels, conv_dim):
            conv = Conv2d(
                channels,
                conv_dim,
                kernel_size=3,
                padding=_DILATION,
                dilation=_DILATION,
                bias=not norm,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            weight_init.c2_msra_fill(conv)
            self.convs.append(conv)
        self.classifier = Conv2d(conv_dim, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)  # the loss starts at chance, log K
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """
        Raises:
            ValueError: not exactly one feature map, or one that the backbone does not give.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        if len(head.IN_FEATURES) != 1 or head.IN_FEATURES[0] not in input_shape:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}; FCN16sHead takes "
                f"exactly one of the backbone's feature maps {sorted(input_shape)}."
            )
        return {
            "in_feature": head.IN_FEATURES[0],
            "in_shape": input_shape[head.IN_FEATURES[0]],
            "num_classes": head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def forward(
        self, features: dict[str, torch.Tensor], targets_NHW: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """
        Args:
            features: the backbone's feature maps, among them one of shape (N, C, h, w).
            targets_NHW: class indices or `ignore_value`, of shape (N, H, W); training only.

        Returns:
            in training None and the loss; otherwise the logits, of shape (N, K, 16 h, 16 w), a
            few pixels larger than the images where 16 does not divide their size, and no loss.

        Raises:
            ValueError: training without targets.
        """
        logits = self.classifier(self.convs(features[self.in_feature]))
        # in float32, since autocast would interpolate in half precision
        logits_NKHW = F.interpolate(
            logits.float(), scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        if not self.training:
            return logits_NKHW, {}
        if targets_NHW is None:
            raise ValueError("DATASETS.TRAIN has no semantic labels (sem_seg_file_name).")
        return None, {"loss_sem_seg": self.loss_weight * self.loss(logits_NKHW, targets_NHW)}

    def loss(self, logits_NKHW: torch.Tensor, targets_NHW: torch.Tensor) -> torch.Tensor:
        """Compute the mean cross entropy over the pixels that have a class; 0 where none has."""
        height, width = targets_NHW.shape[-2:]
        logits_NKHW = logits_NKHW[..., :height, :width]
        ignored = self.ignore_value
        total = F.cross_entropy(logits_NKHW, targets_NHW, ignore_index=ignored, reduction="sum")
        return total / (targets_NHW != ignored).sum().clamp(min=1)
