"""Checkpoints that outlive a crash: whole or absent, checked before use, the newest few kept.

Needs nothing but fvcore's `Checkpointer`, whose names and formats stay as they are.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

from ..files import is_leftover, replacing
from .reading import read_weight_file

logger = logging.getLogger(__name__)

_POINTER = "last_checkpoint"
_NAME = re.compile(r"model_(\d{7,}|final)\.pth")
_OWN_FILES = (".pth", ".pth.sha256", _POINTER)


def find_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, intact or not, in the order in which a resume tries them.

    That is: the one that `last_checkpoint` names (which a user may edit), then the newest.
    """
    root = Path(folder)
    if not root.is_dir():
        return []
    found = _newest_first(root)
    try:
        named = (root / _POINTER).read_text(errors="replace").strip()
    except OSError:
        return found
    return sorted(found, key=lambda path: path.name != named)


def _newest_first(root: Path) -> list[Path]:
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def what_is_wrong(path: Path) -> str:
    """Why a checkpoint cannot be used, or "" if it is what was written.

    One without a checksum (of an earlier run, or of Detectron2 itself) is read instead.
    """
    side = _checksum_file(path)
    try:
        if side.is_file():
            # on a line of its own, behind "#", stands the file that this one replaced
            if _digest(path) not in side.read_text(errors="replace").split():
                return f"its contents do not match {side.name}"
        elif "model" not in read_weight_file(str(path)):
            return "it holds no model"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def newest_intact(folder: str | os.PathLike[str]) -> Path | None:
    """The checkpoint to resume from; warns of each that is passed over."""
    for path in find_checkpoints(folder):
        wrong = what_is_wrong(path)
        if not wrong:
            return path
        logger.warning("Checkpoint %s is damaged (%s); trying an older one.", path, wrong)
    return None


def remove_checkpoints(folder: str | os.PathLike[str], keep: int) -> None:
    """Remove all but the newest `keep`, and what a killed process left half-written.

    `model_final.pth` is not counted and stays too, unless `keep` is 0.
    """
    root = Path(folder)
    files = _newest_first(root)
    periodic = [path for path in files if path.name != "model_final.pth"] if keep else files
    for path in periodic[keep:]:
        path.unlink()
    for path in root.iterdir():
        orphan = path.name.endswith(".pth.sha256") and not path.with_suffix("").exists()
        if orphan or is_leftover(path.name, _OWN_FILES):
            path.unlink()
    if not keep:
        (root / _POINTER).unlink(missing_ok=True)


class DurableCheckpointer(Checkpointer):
    """A mixin for fvcore's `Checkpointer` and its subclasses.

    A save is written under another name, flushed, given a checksum beside (`sha256sum -c` reads
    it) and renamed, so that at every moment the last complete save can be found. A resume takes
    the newest that is intact, on all processes the one that the main process found.
    """

    def __init__(self, *args: Any, keep: int | None = None, **kwargs: Any) -> None:
        """Keep so many periodic checkpoints after each save; None: all."""
        super().__init__(*args, **kwargs)
        self.keep = keep
        self._is_resume = False

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: each.state_dict() for key, each in self.checkpointables.items()}
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with replacing(path) as part:
            with part.open("wb") as file:
                torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
            _write_checksum(path, part)
        self.tag_last_checkpoint(path.name)
        if self.keep:
            remove_checkpoints(self.save_dir, self.keep)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(Path(self.save_dir, _POINTER)) as part:
            part.write_text(last_filename_basename)

    def has_checkpoint(self) -> bool:
        return bool(comm.all_gather(bool(find_checkpoints(self.save_dir)))[0])

    def get_checkpoint_file(self) -> str:
        """
        Raises:
            FileNotFoundError: there are checkpoints, and none is intact; or there are none.
        """
        found = newest_intact(self.save_dir) if comm.is_main_process() else None
        path = comm.all_gather(str(found or ""))[0]
        if not path:
            tried = [path.name for path in find_checkpoints(self.save_dir)]
            raise FileNotFoundError(
                f"Nothing to resume from in {os.path.abspath(self.save_dir)!r}: "
                + (f"all of {tried} are damaged" if tried else "it has no checkpoint")
                + ". Name another OUTPUT_DIR, or leave --resume out to start anew."
            )
        return path

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As fvcore's, but a resume takes everything over, or is an error.

        Raises:
            FileNotFoundError, ValueError: nothing to resume from, or a checkpoint of another model.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        self._is_resume = True
        try:
            return self.load(self.get_checkpoint_file())
        finally:
            self._is_resume = False

    def _load_model(self, checkpoint: Any) -> Any:
        found = super()._load_model(checkpoint)
        wrong = {*found.missing_keys, *(name for name, *_ in found.incorrect_shapes)}
        if self._is_resume and wrong:
            raise ValueError(
                f"Cannot resume: the checkpoint in {self.save_dir!r} is of another model; "
                f"{len(wrong)} tensors are missing or differ in shape, such as {sorted(wrong)[:3]}."
            )
        return found


def _write_checksum(path: Path, written: Path) -> None:
    """Before the rename, so that a file never stands without; the old one's stays until then."""
    side = _checksum_file(path)
    text = f"{_digest(written)}  {path.name}\n"
    if path.is_file() and side.is_file():
        text += f"# {side.read_text(errors='replace')[:64]}\n"
    with replacing(side) as part:
        part.write_text(text)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
