"""Everything that differs between Detectron2's main branch and its 0.5 release, in one place.

The package is written for main. Version 0.5 is the only release that the Python package index
carries; the day main is there, this module shrinks to :func:`check_installation`.
"""

import importlib
from collections.abc import Callable
from typing import Any

_REMEDY = (
    "Run `make demo` or `python tools/setup_env.py`, which install a tested combination, or see "
    "the Install section of README.md."
)


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
            text = f"detco_d2 needs {name}, which does not import: {error}. {_REMEDY}"
            raise ImportError(text) from error


check_installation()

import detectron2.data  # noqa: E402
import torch  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.events import EventStorage, get_event_storage  # noqa: E402


def build_train_loader(
    dataset: torch.utils.data.Dataset,
    sampler: torch.utils.data.Sampler,
    total_batch_size: int,
    num_workers: int,
    collate_fn: Callable[[list[Any]], Any],
    pin_memory: bool = False,
) -> Any:
    """Detectron2's `build_detection_train_loader` with the arguments that 0.5 does not take."""
    build = detectron2.data.build_detection_train_loader
    arguments = dict(
        dataset=dataset,
        mapper=None,
        sampler=sampler,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    try:
        return build(**arguments, collate_fn=collate_fn, pin_memory=pin_memory)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
    loader = build(**arguments)  # 0.5: both can be set on the loader before it is iterated
    loader.collate_fn = collate_fn
    loader.pin_memory = pin_memory
    return loader


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
