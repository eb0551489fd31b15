"""What a run needs to know of the machine: its GPUs, its batch norms, its memory."""

import contextlib
import ctypes
import logging

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config_files import flatten

logger = logging.getLogger(__name__)


def check_gpus(wanted: int) -> None:
    """
    Raises:
        RuntimeError: more GPUs than this machine has; says how many that is.
    """
    available = torch.cuda.device_count()
    if wanted > available:
        raise RuntimeError(
            f"{wanted} GPU(s) asked for on this machine, which has {available}. Pass --num-gpus "
            f"{available}" + ("" if available else " to run on the CPU") + "."
        )


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step to take.

    The C library (glibc) gives large blocks back at once, and taking them again costs a page fault
    for every 4 KiB: a tenth of a step on the CPU.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's M_TRIM_THRESHOLD and M_MMAP_MAX
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def adapt_to_machine(cfg: CfgNode, num_gpus: int) -> None:
    """Set the device, and on the CPU replace every SyncBN, which torch only has for GPUs.

    A single process has the same statistics with BN; several use Detectron2's naive SyncBN.
    """
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
        norm = "BN" if comm.get_world_size() == 1 else "naiveSyncBN"
        for key in [key for key, value in flatten(cfg) if value == "SyncBN"]:
            cfg.merge_from_list([key, norm])
            logger.info("On the CPU: the SyncBN of %s is replaced by %s.", key, norm)
