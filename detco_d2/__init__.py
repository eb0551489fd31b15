"""DetCo pretraining and detection transfer in Detectron2 (Xie et al., ICCV 2021, arXiv 2102.04803)."""

from . import compat  # first: explains a missing or broken Detectron2 in words
from . import modeling  # registers the meta-architecture and the ROI heads
from .config import add_detco_config
from .data import datasets  # registers the ImageNet names

__all__ = ["add_detco_config", "compat", "datasets", "modeling"]
