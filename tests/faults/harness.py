"""A run so small that it can be killed many times: its command line, its state, its end."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from detco_d2.engine.step import PretrainStep

from ..conftest import ROOT, SETTINGS, TINY
from ..warm import Process

SMALL = TINY + SETTINGS["TINIER"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
REAL = ["env"]  # before a command: its interpreters are started, not forked


def fuzz(factor: float = 1) -> settings:
    """So many inputs, always the same; FUZZ_EXAMPLES sets how many, and make test-all takes 300."""
    return settings(
        max_examples=int(factor * int(os.environ.get("FUZZ_EXAMPLES", 60))),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


noise = st.binary(max_size=8)


def mutations(content: Any, added: st.SearchStrategy) -> st.SearchStrategy:
    """A file with a few pieces taken out (of 8 bytes, or to its end), and others put in."""
    edit = st.tuples(st.integers(0, len(content)), st.integers(0, 8) | st.just(len(content)), added)

    def apply(edits: list[tuple[int, int, Any]]) -> Any:
        result = content
        for start, removed, added in edits:
            result = result[:start] + added + result[start + removed :]
        return result

    return st.lists(edit, min_size=1, max_size=4).map(apply)


def command(
    images: str, output: Path, *settings: object, processes: int = 1, restarts: int = 0
) -> list[str]:
    """What starts, and continues, a run."""
    start = [sys.executable, "-W", "ignore"]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        start += [str(processes), "--max-restarts", str(restarts)]
    start += ["pretrain_net.py", "--config-file", "configs/detco.yaml", "--num-gpus", "0"]
    pairs = ["DATASETS.TRAIN", f"('{images}',)", "OUTPUT_DIR", output, *SMALL, *settings]
    return start + sorted(map(str, pairs), key=lambda word: not word.startswith("--"))


class Run:
    """A process with a session of its own; what it says goes to a file, so that it never waits."""

    def __init__(self, words: list[str], **environment: str) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = Process(words, ROOT, {**ENVIRONMENT, **environment}, self.log, self.log)
        self.pid = self.process.pid

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def wait(self, timeout: float = 300) -> tuple[int, str]:
        """The exit code, and all that was said."""
        try:
            self.process.wait(timeout)
        finally:
            self.kill()
        return self.process.returncode, self.text()

    def until(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Wait for something to happen while this runs; otherwise nothing of it stays behind."""
        try:
            wait_for(lambda: condition() or self.process.poll() is not None, timeout)
            assert self.process.poll() is None, self.text()[-3000:]
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for it and all processes below, to which torchrun gives sessions of their own."""
        for pid in [self.pid, *descendants(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def finish(words: list[str], timeout: float = 300, want: int | None = None) -> tuple[int, str]:
    """The exit code of a command, which may have to be a certain one, and all that it said."""
    code, text = Run(words).wait(timeout)
    assert want in (None, code), text[-3000:]
    return code, text


def wait_for(condition: Callable[[], bool], timeout: float = 120, period: float = 0.05) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(period)


def saved_state(output: Path, name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    """All tensors and numbers of a checkpoint, by path: weights, queues, momenta, schedule."""

    def flat(node: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(node, torch.Tensor | int | float):
            yield path, torch.as_tensor(node)
        elif isinstance(node, dict | list | tuple):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                yield from flat(value, f"{path}/{key}")

    return dict(flat(torch.load(output / name, weights_only=True), ""))


def state_of(step: PretrainStep) -> dict[str, torch.Tensor]:
    """Copies of all that a step may change: both encoders, statistics, queues, momenta."""
    state = {name: value.clone() for name, value in step.detco.state_dict().items()}
    for i, slots in step.optimizer.state_dict()["state"].items():
        state.update({f"optimizer/{i}/{k}": v.clone() for k, v in slots.items() if v is not None})
    return state


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that differ by a bit."""
    return [name for name in before if not torch.equal(before[name], after[name])]


def running() -> dict[int, tuple[int, bytes]]:
    """The parent and the command line of every process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            found[int(entry.name)] = int(fields[1]), (entry / "cmdline").read_bytes()
    return found


def ranks(run: Run) -> list[int]:
    """The training processes of torchrun, in their order: its own children."""
    return sorted(pid for pid, (parent, _) in running().items() if parent == run.pid)


def descendants(pid: int) -> list[int]:
    """All processes below one, however deep."""
    known, found = running(), [pid]
    for each in found:  # grows while it is walked
        found += [child for child, (parent, _) in known.items() if parent == each]
    return found[1:]


def processes_of(marker: str) -> list[int]:
    """Other processes with a text, such as an output folder, in their command line."""
    known = running()
    known.pop(os.getpid(), None)
    return [pid for pid, (_, words) in known.items() if marker.encode() in words]
