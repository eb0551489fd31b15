"""DetCo pretraining and detection transfer in Detectron2 (arXiv 2102.04803, ICCV 2021)."""

from . import compat, modeling  # in this order: a missing Detectron2 is explained, then used
from .config import add_detco_config
from .data import datasets

__all__ = ["add_detco_config", "compat", "datasets", "modeling"]
