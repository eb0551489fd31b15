"""Views -> losses: the DetCo meta-architecture, and the heads of the transfer protocols."""

from .detco import DetCo
from .fcn_head import FCN16sHead
from .roi_heads import Res5ROIHeadsExtraNorm

__all__ = ["DetCo", "FCN16sHead", "Res5ROIHeadsExtraNorm"]
