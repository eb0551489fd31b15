"""Views -> losses: the DetCo meta-architecture, and the heads of the transfer protocols.

Their names are registered here, and each module is loaded when a config asks for its name:
fine-tuning needs no DetCo, pretraining no heads of detectors.
"""

from importlib import import_module
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry


def _register(registry: Registry, name: str, module: str) -> None:
    def build(*args: Any) -> Any:
        return getattr(import_module(module, __package__), name)(*args)

    build.__name__ = name
    registry.register(build)


_register(META_ARCH_REGISTRY, "DetCo", ".detco")
_register(ROI_HEADS_REGISTRY, "Res5ROIHeadsExtraNorm", ".roi_heads")
_register(SEM_SEG_HEADS_REGISTRY, "FCN16sHead", ".fcn_head")
