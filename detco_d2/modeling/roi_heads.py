"""The C4 ROI heads of MoCo's and DetCo's transfer protocol."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import Res5ROIHeads


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """`Res5ROIHeads` with one more norm after res5, as self-supervised C4 detectors have it.

    `roi_heads.res5.norm` is a MODEL.RESNETS.NORM, to which no pretrained weight belongs.
    """

    @configurable
    def __init__(self, *, extra_norm: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.res5.add_module("norm", get_norm(extra_norm, self.res5[-1].out_channels))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        """
        Raises:
            ValueError: a ResNet-18 or ResNet-34, whose res5 is not made of bottlenecks.
        """
        depth = cfg.MODEL.RESNETS.DEPTH
        if depth < 50:
            raise ValueError(
                f"A C4 detector cannot use ResNet-{depth}: its ROI head is three bottleneck "
                "blocks, which only ResNet-50/101/152 end in. Set MODEL.RESNETS.DEPTH to one of "
                "these, or use an FPN or RetinaNet config."
            )
        return {**super().from_config(cfg, input_shape), "extra_norm": cfg.MODEL.RESNETS.NORM}
