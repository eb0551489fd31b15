"""Every check before the start: weights, images, batch, W&B, and what OUTPUT_DIR holds.

The stream and k-NN are imported where they are checked: fine-tuning needs neither.
"""

import importlib.util
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from ..config_files import flatten
from ..data.datasets import is_shard_name, prepare_datasets
from ..weights.saving import find_checkpoints, newest_intact
from .record import remove_run

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
# How torchrun and SLURM count the restarts of a job, which must not remove their own beginning.
_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def check_weights(cfg: CfgNode) -> None:
    """
    Raises:
        FileNotFoundError: MODEL.WEIGHTS is no address, and no file either.
    """
    path = cfg.MODEL.WEIGHTS
    if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {os.path.abspath(path)!r}.")


def check_run(cfg: CfgNode, processes: int) -> None:
    """Refuse what would fail in every process, before any process starts.

    The images are counted for it, and tar shards without an index get one.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`check_images`, :func:`check_batch`,
            :func:`load_train_images`, :func:`load_knn_halves` and :func:`check_wandb`.
    """
    check_wandb(cfg)
    if cfg.TEST.KNN.DATASET:
        from .knn import load_knn_halves

        load_knn_halves(cfg)
    from ..data.stream import load_train_images

    check_images(cfg.DATASETS.TRAIN)
    check_batch(cfg, len(load_train_images(cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR)), processes)


def check_wandb(cfg: CfgNode) -> None:
    """
    Raises:
        ImportError: WANDB.PROJECT is set and the package is missing.
    """
    spec = importlib.util.find_spec("wandb") if cfg.WANDB.PROJECT else None
    if cfg.WANDB.PROJECT and (spec is None or spec.origin is None):  # a folder of that name
        raise ImportError(
            f"WANDB.PROJECT is {cfg.WANDB.PROJECT!r}, and Weights & Biases is not installed: "
            "pip install wandb"
        )


def check_images(names: Sequence[str]) -> None:
    """Refuse a DATASETS.TRAIN that names what is not there, before any process starts.

    Raises:
        ValueError, FileNotFoundError: see :func:`list_shards` and :func:`prepare_datasets`.
    """
    if any(is_shard_name(name) for name in names):
        from ..data.tar import list_shards

        list_shards(names)
    else:
        prepare_datasets(names, [])


def check_batch(cfg: CfgNode, num_images: int, processes: int) -> None:
    """
    Raises:
        ValueError: a batch that the processes cannot share or the data cannot fill, or more loader
            processes than images.
    """
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    workers = cfg.DATALOADER.NUM_WORKERS
    if parts < 1 or batch % (processes * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which {processes} processes of {parts} "
            "SOLVER.ACCUMULATION_STEPS each cannot share equally; make it a multiple of "
            f"{processes * max(parts, 1)}, and the steps at least 1."
        )
    if batch > num_images:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, but DATASETS.TRAIN has {num_images} images; the "
            "same image would be its own negative. Lower the batch or add images."
        )
    if processes * workers > num_images:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {workers} for each of {processes} processes, more than "
            f"the {num_images} images of DATASETS.TRAIN; lower it to at most "
            f"{num_images // processes}."
        )


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
