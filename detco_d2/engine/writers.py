"""Weights & Biases as one more place that the scalars and pictures of pretraining go to."""

import uuid
from pathlib import Path
from typing import Any

import wandb
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..files import replacing
from ..weights.saving import find_checkpoints


class WandbWriter(EventWriter):
    """Sends the scalars that the other writers write, and the pictures, to Weights & Biases.

    Who goes on from a checkpoint of OUTPUT_DIR continues its run, whose id is in wandb_run_id.
    All else is as W&B's environment variables say (WANDB_MODE=offline, ...).
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            RuntimeError: W&B does not let the run start; says its reason and the ways out.
        """
        self._last_write = -1
        try:
            self._run: Any = wandb.init(
                project=cfg.WANDB.PROJECT,
                dir=cfg.OUTPUT_DIR,
                id=_run_id(Path(cfg.OUTPUT_DIR)),
                resume="allow",
                config=yaml.safe_load(cfg.dump()),
            )
        except Exception as error:  # no login, no network, a project of others
            raise RuntimeError(
                f"WANDB.PROJECT is {cfg.WANDB.PROJECT!r}, and Weights & Biases does not start: "
                f'{str(error).rstrip(".")}. Log in with "wandb login", set WANDB_MODE=offline in '
                'the environment, or pass WANDB.PROJECT "".'
            ) from error
        # a resume goes back to its checkpoint, which W&B's own steps cannot
        self._run.define_metric("*", step_metric="iteration")

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = {}
        scalars = storage.latest_with_smoothing_hint(20)  # medians, as Detectron2's writers take
        for name, (value, iteration) in scalars.items():
            if iteration > self._last_write:
                rows.setdefault(iteration, {})[name] = value
        for name, pixels, iteration in storage._vis_data:  # as Detectron2's TensorBoard writer does
            rows.setdefault(iteration, {})[name] = wandb.Image(pixels.transpose(1, 2, 0))
        for iteration in sorted(rows):
            self._run.log({**rows[iteration], "iteration": iteration})
            self._last_write = max(self._last_write, iteration)

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The id of the run whose checkpoints are in the folder, or a new one, which is kept."""
    file = folder / "wandb_run_id"
    if file.is_file() and find_checkpoints(folder):
        return file.read_text().strip()
    new = uuid.uuid4().hex[:12]
    with replacing(file) as part:
        part.write_text(new)
    return new
