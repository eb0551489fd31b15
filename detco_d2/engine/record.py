"""How a run starts, what it leaves on record (command, versions), and how all of it goes."""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import logging
import platform
import shlex
import sys
from datetime import datetime
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..files import replacing
from ..weights.saving import remove_checkpoints
from .machine import adapt_to_machine

logger = logging.getLogger(__name__)

# What a run leaves beside its checkpoints, and what the next one would take for its own.
_RECORDS = (
    "metrics.json",
    "results.json",
    "run.json",
    "log.txt*",
    "events.out.tfevents.*",
    "views/iteration_*.png",
    "bad_images.txt",
    "wandb_run_id",
)


def set_up(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Prepare a process for a run: its device, logs, seed, line on record; freeze the config."""
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="detco_d2", abbrev_name="detco")
    adapt_to_machine(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)
    note_start(cfg)
    return cfg


def command_line() -> str:
    """What was typed to start this process, as a shell would take it again."""
    return shlex.join(["python", *sys.argv])


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    result = {"Python": platform.python_version()}
    for name in ("torch", "torchvision", "detectron2"):
        result[name] = importlib.import_module(name).__version__
    for name in ("numpy", "Pillow", "scikit-learn", "detco_d2"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name)
    return result


def remove_run(folder: Path) -> None:
    """Remove the checkpoints of a run, its curves, logs and views; all other files stay."""
    remove_checkpoints(folder, keep=0)
    for pattern in _RECORDS:
        for file in folder.glob(pattern):
            file.unlink()


def note_start(cfg: CfgNode) -> None:
    """Add this start to OUTPUT_DIR/run.json: command, time, versions, processes, device.

    The main process writes it. A disk that is full is no reason not to start.
    """
    if not comm.is_main_process():
        return
    file = Path(cfg.OUTPUT_DIR) / "run.json"
    is_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    start = {
        "command": command_line(),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "processes": comm.get_world_size(),
        "device": torch.cuda.get_device_name() if is_cuda else cfg.MODEL.DEVICE,
    }
    before = []
    try:
        if file.exists():
            before = list(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read and is begun anew: %s", file, error)
    try:
        with replacing(file) as part:
            part.write_text(json.dumps([*before, start], indent=1) + "\n")
    except OSError as error:
        logger.warning("Cannot write %s: %s", file, error)
