"""What an output folder already holds, whether this run may go on in it, and that it did."""

import json
import logging
import os
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..checkpoint.saving import find_checkpoints, newest_intact, remove_checkpoints
from ..config_files import flatten
from ..files import replacing
from ..provenance import command_line, versions

logger = logging.getLogger(__name__)

# Not what is learnt, but how fast, where, and what is kept of it.
_FREE = (
    *("OUTPUT_DIR", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.DEVICE", "TEST."),
    *("DATALOADER.", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.KEEP_", "SOLVER.MAX_FAILED_SAVES"),
    *("SOLVER.MAX_NONFINITE_STEPS", "SOLVER.COLLECTIVE_TIMEOUT", "WANDB."),
)
# What a checkpoint cannot be loaded into once it has changed.
_FIXED = (
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.DETCO.STAGES"),
    *("MODEL.DETCO.FAMILIES", "MODEL.DETCO.EMBED_DIM", "MODEL.DETCO.GLOBAL_HIDDEN_DIMS"),
    *("MODEL.DETCO.LOCAL_HIDDEN_DIMS", "MODEL.DETCO.HEAD_NORM", "MODEL.DETCO.QUEUE_LENGTH"),
)
_BATCH_NORMS = ("BN", "SyncBN", "naiveSyncBN")  # which of them, the machine decides
# What a run leaves beside its checkpoints, and what the next one would take for its own.
_RECORDS = (
    *("metrics.json", "run.json", "log.txt*", "events.out.tfevents.*", "views/iteration_*.png"),
    *("bad_images.txt", "wandb_run_id"),
)
# How torchrun and SLURM count the restarts of a job, which must not remove their own beginning.
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def check_output_dir(cfg: CfgNode, resume: bool, overwrite: bool) -> bool:
    """Whether to resume from what is in OUTPUT_DIR, asked before any process starts.

    Without a flag a run goes on if the folder holds one of the same config, so that the same
    command line starts it, and continues it after a crash.

    Args:
        cfg: of this run, merged.
        resume: `--resume`: there must be a run, whose config may differ in what a checkpoint bears.
        overwrite: `--overwrite`: a run that is there is removed, with its curves, logs and views.

    Raises:
        FileNotFoundError: `--resume` without a checkpoint, or none that is there is intact.
        ValueError: a run of another config; lists what differs.
        OSError: the folder cannot be written to.
    """
    folder = Path(cfg.OUTPUT_DIR).absolute()
    _probe(folder)
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
    changed = _differences(newest, cfg)
    if changed is None and not resume:
        raise ValueError(
            f"{str(folder)!r} holds {newest.name}, which does not say of what config it is. Pass "
            "--resume to go on from it, --overwrite to remove it, or name another OUTPUT_DIR."
        )
    lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed or ())
    fixed = [key for key, *_ in changed or () if key.startswith(_FIXED)]
    if fixed:
        raise ValueError(
            f"{str(folder)!r} holds a run of another model, which cannot go on with this "
            f"config:\n{lines}\nSet {', '.join(fixed)} back, pass --overwrite to remove that run, "
            "or name another OUTPUT_DIR."
        )
    if changed and not resume:
        raise ValueError(
            f"{str(folder)!r} holds a run of another config:\n{lines}\nPass --resume to "
            "continue it with these changes, --overwrite to remove it, or another OUTPUT_DIR."
        )
    if changed:
        logger.warning("The run goes on with another config:\n%s", lines)
    return True


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
    try:
        before = list(json.loads(file.read_text())) if file.exists() else []
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read and is begun anew: %s", file, error)
        before = []
    try:
        with replacing(file) as part:
            part.write_text(json.dumps([*before, start], indent=1) + "\n")
    except OSError as error:
        logger.warning("Cannot write %s: %s", file, error)


def _probe(folder: Path) -> None:
    """Write a few bytes where checkpoints will go."""
    file = folder / f".probe.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"detco_d2")
        file.unlink()
    except OSError as error:
        raise OSError(
            f"OUTPUT_DIR {str(folder)!r} cannot be written to: {error}. Free space "
            "there, or name another OUTPUT_DIR."
        ) from error


def _differences(checkpoint: Path, cfg: CfgNode) -> list[tuple[str, Any, Any]] | None:
    """(key, value in the checkpoint, value now) of what differs and matters.

    None where the checkpoint does not say. The run's config.yaml is no help: Detectron2 writes it
    anew at each start, and a kill may cut it.
    """
    data = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    text = data.get("trainer", {}).get("config")
    if not isinstance(text, str):
        return None
    before, now = (
        {
            key: "BN" if value in _BATCH_NORMS else value
            for key, value in flatten(yaml.safe_load(config))
        }
        for config in (text, cfg.dump())
    )
    return [
        (key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE)
    ]
