"""Views -> losses: the DetCo meta-architecture and the C4 ROI heads with the extra norm."""

from .detco import DetCo
from .roi_heads import Res5ROIHeadsExtraNorm

__all__ = ["DetCo", "Res5ROIHeadsExtraNorm"]
