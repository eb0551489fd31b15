"""Where the scalars and pictures of pretraining go: JSON, TensorBoard, and W&B if asked for."""

import os
import uuid
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import (
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..files import replacing
from ..weights.saving import find_checkpoints

_ID_FILE = "wandb_run_id"


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """metrics.json, Weights & Biases if WANDB.PROJECT is set, TensorBoard's files; in OUTPUT_DIR.

    TensorBoard's comes last: it removes the pictures from the event storage.
    """
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    return [
        JSONWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
        *([WandbWriter(cfg)] if cfg.WANDB.PROJECT else []),
        TensorboardXWriter(cfg.OUTPUT_DIR),
    ]


class WandbWriter(EventWriter):
    """Sends the scalars that the other writers write, and the pictures, to Weights & Biases.

    The run's id is kept in OUTPUT_DIR/wandb_run_id: who goes on from a checkpoint there continues
    the same run. All else is as W&B's environment variables say (WANDB_MODE=offline, ...).
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20) -> None:
        """
        Args:
            cfg: of the run.
            window_size: values over which noisy scalars have their median taken.

        Raises:
            RuntimeError: W&B does not let the run start; says its reason and the ways out.
        """
        import wandb

        self._window_size = window_size
        self._last_write = -1
        self._image = wandb.Image
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
        for name, (value, iteration) in storage.latest_with_smoothing_hint(
            self._window_size
        ).items():
            if iteration > self._last_write:
                rows.setdefault(iteration, {})[name] = value
        for name, pixels, iteration in storage._vis_data:  # as TensorboardXWriter reads them
            rows.setdefault(iteration, {})[name] = self._image(pixels.transpose(1, 2, 0))
        for iteration in sorted(rows):
            self._run.log({**rows[iteration], "iteration": iteration})
            self._last_write = max(self._last_write, iteration)

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The id of the run whose checkpoints are in the folder, or a new one, which is kept."""
    file = folder / _ID_FILE
    if file.is_file() and find_checkpoints(folder):
        return file.read_text().strip()
    new = uuid.uuid4().hex[:12]
    with replacing(file) as part:
        part.write_text(new)
    return new
