"""Views -> losses: the DetCo meta-architecture, and the heads of the transfer protocols.

Their names are registered here, and each module is loaded when a config asks for its name:
fine-tuning needs no DetCo, pretraining no heads of detectors.
"""

from importlib import import_module
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

_MODULES = {"DetCo": ".detco", "Res5ROIHeadsExtraNorm": ".roi_heads", "FCN16sHead": ".fcn_head"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"{__name__} has no {name}")
    return getattr(import_module(_MODULES[name], __name__), name)


def _register(registry: Registry, name: str) -> None:
    def build(*args: Any) -> Any:
        return __getattr__(name)(*args)

    build.__name__ = name
    registry.register(build)


_register(META_ARCH_REGISTRY, "DetCo")
_register(ROI_HEADS_REGISTRY, "Res5ROIHeadsExtraNorm")
_register(SEM_SEG_HEADS_REGISTRY, "FCN16sHead")
