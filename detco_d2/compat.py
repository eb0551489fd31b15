"""Everything that differs between Detectron2's main branch and its 0.5 release, in one place.

The package is written for main. Version 0.5 is the only release that the Python package index
carries; the day main is there, this module shrinks to :func:`check_installation`, and to the alias
that main's Cityscapes needs until its imports are mended.
"""

import importlib
import importlib.util
import sys
from types import ModuleType


def check_installation() -> None:
    """Import torch, torchvision and detectron2 once, and turn a failure into a remedy.

    Raises:
        ImportError: one of the three is missing, or torch and torchvision are builds that do not
            belong together (a `+cpu` torch beside the package index's torchvision, for example).
    """
    for name in ("torch", "torchvision", "detectron2"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a wrong pair fails with RuntimeError, a missing one otherwise
            raise ImportError(
                f"detco_d2 needs {name}, which does not import: {error}. Run `make demo` or "
                "`python tools/setup_env.py`, which install a tested combination, or see "
                "docs/INSTALL.md."
            ) from error


check_installation()

import torch  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.events import EventStorage, get_event_storage  # noqa: E402

CITYSCAPES_ALIAS = "deeplearning.projects.cityscapesApi"


def _alias_cityscapesscripts() -> None:
    """Lets `deeplearning.projects.cityscapesApi.cityscapesscripts` mean `cityscapesscripts`.

    Since December 2024 (commit 4823082a) Detectron2's main imports the public package under a name
    that only its authors have, and can neither load nor evaluate Cityscapes. Nothing is imported
    here, a real package of that name wins, and forked workers inherit the alias.
    """
    public = importlib.util.find_spec("cityscapesscripts")
    if public is None or importlib.util.find_spec(CITYSCAPES_ALIAS.partition(".")[0]):
        return
    name = ""
    for part in f"{CITYSCAPES_ALIAS}.cityscapesscripts".split("."):
        name = f"{name}.{part}".lstrip(".")
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = []
    package.__path__ = list(public.submodule_search_locations or [])


_alias_cityscapesscripts()


def create_local_process_group(processes_per_machine: int) -> None:
    """Tell Detectron2's `comm` which processes share a machine; 0.5 has no function for it."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(processes_per_machine)
        return
    for machine in range(comm.get_world_size() // processes_per_machine):
        first = machine * processes_per_machine
        ranks = list(range(first, first + processes_per_machine))
        group = torch.distributed.new_group(ranks)
        if comm.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def current_event_storage() -> EventStorage | None:
    """The open :class:`EventStorage`, or None outside of training; 0.5 has no question for it."""
    try:
        return get_event_storage()
    except AssertionError:
        return None


def has_compiled_coco_evaluator() -> bool:
    """Whether Detectron2's C++ COCO evaluator is there; the package-index copy comes without."""
    from detectron2 import _C

    return hasattr(_C, "COCOevalEvaluateImages")
