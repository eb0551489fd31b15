"""What OUTPUT_DIR holds, asked before the start: nothing, this run, or another one."""

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from ..config_files import flatten
from ..weights.saving import find_checkpoints, newest_intact
from .record import remove_run

logger = logging.getLogger(__name__)

# Sections and keys that say not what is learnt, but how fast, where, and what is kept of it.
_FREE = (
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "MODEL.DEVICE",
    "DATALOADER.",
    "TEST.",
    "WANDB.",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.COLLECTIVE_TIMEOUT",
    "SOLVER.KEEP_",
    "SOLVER.MAX_FAILED_SAVES",
    "SOLVER.MAX_NONFINITE_STEPS",
)
# What a checkpoint cannot be loaded into once it has changed.
_FIXED = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE.NAME",
    "MODEL.RESNETS.",
    "MODEL.DETCO.EMBED_DIM",
    "MODEL.DETCO.FAMILIES",
    "MODEL.DETCO.GLOBAL_HIDDEN_DIMS",
    "MODEL.DETCO.HEAD_NORM",
    "MODEL.DETCO.LOCAL_HIDDEN_DIMS",
    "MODEL.DETCO.QUEUE_LENGTH",
    "MODEL.DETCO.STAGES",
    "SOLVER.WEIGHT_DECAY",
)
BATCH_NORMS = ("BN", "SyncBN", "naiveSyncBN")  # which of them, the machine decides
# How torchrun and SLURM count the restarts of a job, which must not remove their own beginning.
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def add_overwrite_flag(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with `--overwrite`; see :func:`check_output_dir`."""
    parser.add_argument("--overwrite", action="store_true", help="remove a run in OUTPUT_DIR first")
    return parser


def check_output_dir(cfg: CfgNode, resume: bool, overwrite: bool) -> bool:
    """Whether to resume from what is in OUTPUT_DIR, asked before any process starts.

    Without a flag a run goes on if the folder holds one of the same config, so that the same
    command line starts it, and continues it after a crash.

    Args:
        cfg: of this run, merged.
        resume: there must be a run, whose config may differ in what a checkpoint bears.
        overwrite: a run that is there is removed, with its curves, logs and views.

    Raises:
        FileNotFoundError: `--resume` without a checkpoint, or none that is there is intact.
        ValueError: a run of another config; lists what differs.
        OSError: the folder cannot be written to.
    """
    folder = Path(cfg.OUTPUT_DIR).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"detco_d2")
    except OSError as error:
        raise OSError(
            f"OUTPUT_DIR {str(folder)!r} cannot be written to: {error}. Free space "
            "there, or name another OUTPUT_DIR."
        ) from error
    if overwrite and resume:
        raise ValueError("--resume continues a run and --overwrite removes it; pass one of them.")
    is_restart = any(os.environ.get(name, "0") != "0" for name in _RESTARTS)
    if overwrite and not is_restart:
        remove_run(folder)
        return False
    if not find_checkpoints(folder):
        if resume:
            raise FileNotFoundError(
                f"--resume: there is no checkpoint in {str(folder)!r}. Check "
                "OUTPUT_DIR, or leave --resume out to start anew."
            )
        return False
    newest = newest_intact(folder)
    if newest is None:
        raise FileNotFoundError(
            f"All checkpoints in {str(folder)!r} are damaged. Pass --overwrite to remove them and "
            "start anew, or name another OUTPUT_DIR."
        )
    _check_same_run(newest, cfg, resume)
    return True


def _check_same_run(checkpoint: Path, cfg: CfgNode, resume: bool) -> None:
    """Refuse to go on with a checkpoint of another config, or with `resume` of another model."""
    # the run's config.yaml is no help: Detectron2 writes it anew at each start
    data = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    text = data.get("trainer", {}).get("config")
    folder = str(checkpoint.parent)
    if not isinstance(text, str):
        if resume:
            return
        raise ValueError(
            f"{folder!r} holds {checkpoint.name}, which does not say of what config it is. Pass "
            "--resume to go on from it, --overwrite to remove it, or name another OUTPUT_DIR."
        )
    changed = _differences(text, cfg)
    lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
    if fixed := [key for key, *_ in changed if key.startswith(_FIXED)]:
        raise ValueError(
            f"{folder!r} holds a run of another model, which cannot go on with this "
            f"config:\n{lines}\nSet {', '.join(fixed)} back, pass --overwrite to remove that run, "
            "or name another OUTPUT_DIR."
        )
    if changed and not resume:
        raise ValueError(
            f"{folder!r} holds a run of another config:\n{lines}\nPass --resume to "
            "continue it with these changes, --overwrite to remove it, or another OUTPUT_DIR."
        )
    if changed:
        logger.warning("The run goes on with another config:\n%s", lines)


def _differences(text: str, cfg: CfgNode) -> list[tuple[str, Any, Any]]:
    """(key, value in the checkpoint's config, value now) of what differs and matters."""

    def values(config: str) -> dict[str, Any]:
        pairs = flatten(yaml.safe_load(config))
        return {key: "BN" if value in BATCH_NORMS else value for key, value in pairs}

    before, now = values(text), values(cfg.dump())
    # of a run that has begun, and that did not know it yet
    before.setdefault("MODEL.DETCO.QUEUE_FILL", now["MODEL.DETCO.QUEUE_FILL"])
    return [
        (key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not key.startswith(_FREE)
        and key in now  # a key that is gone decides nothing any more
    ]
