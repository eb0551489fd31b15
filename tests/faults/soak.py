"""A long run under every fault at once, against an undisturbed one.

    python -m tests.faults.soak FOLDER [ITERATIONS]

Two CPU processes with a loader process each train on images of which some are broken, and some
steps give NaN: in both runs. One of them is killed, stopped, and has its checkpoints damaged all
the time. Prints what was injected, how memory and open files grew, and whether the ends are equal.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from detco_d2.data.synthetic import write_scenes

from ..conftest import ROOT
from .harness import (
    Run,
    changed,
    command,
    descendants,
    processes_of,
    ranks,
    saved_state,
    wait_for,
)

SEED = 0


def images(folder: Path) -> str:
    """60 scenes, and four files that are none."""
    root = folder / "images"
    if not root.exists():
        write_scenes(str(root), "train", 60, seed=0, size=(96, 128))
        first = sorted((root / "train").rglob("*.jpg"))[0]
        content = first.read_bytes()
        for name, data in {
            "cut.jpg": content[: len(content) * 6 // 10],
            "zeros.jpg": content[: len(content) // 2] + bytes(len(content) // 2),
            "empty.jpg": b"",
            "page.jpg": b"<html>",
        }.items():
            (first.parent / name).write_bytes(data)
    return str(root / "train")


class Watch(threading.Thread):
    """Samples resident memory (MB) and open files of a run's processes."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self.run_watched = run
        self.samples: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
        self.done = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self.done.wait(2.0):
            for pid in [self.run_watched.pid, *descendants(self.run_watched.pid)]:
                with contextlib.suppress(OSError, StopIteration, ValueError):
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    files = len(os.listdir(f"/proc/{pid}/fd"))
                    sample = (time.monotonic() - start, pages * 4096 / 2**20, files)
                    self.samples.setdefault((name, pid), []).append(sample)

    def growth(self, iterations: int, seconds: float) -> list[dict[str, object]]:
        """Per process: MB per 1,000 iterations, by least squares over the second half.

        The first thousand iterations fill the histories of the numbers that are watched.
        """
        result = []
        for (name, pid), samples in self.samples.items():
            times, memory, files = (np.array(values) for values in zip(*samples))
            if len(times) < 20:
                continue
            late = times > (times[0] + times[-1]) / 2
            slope = np.polyfit(times[late], memory[late], 1)[0] * seconds / iterations * 1000
            result.append(
                {
                    **{"process": name, "pid": pid, "samples": len(times)},
                    **{"megabytes": round(float(memory[late].mean()), 1)},
                    "megabytes_per_1000_iterations": round(float(slope), 3),
                    "open_files": {"first": int(files[late][0]), "most": int(files[late].max())},
                }
            )
        return result


def words(data: str, output: Path, iterations: int) -> list[str]:
    settings = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 20]
    settings += ["DATALOADER.NUM_WORKERS", 1, "DATALOADER.MAX_BAD_FRACTION", 0.1]
    settings += ["SOLVER.COLLECTIVE_TIMEOUT", 60]
    result = command(data, output, *settings, processes=2, restarts=2)
    result[result.index("pretrain_net.py")] = os.path.join(ROOT, "tests", "faults", "poisoned.py")
    return result


def newest(output: Path) -> int:
    return max((int(path.stem[-7:]) for path in output.glob("model_0*.pth")), default=-1)


def inject(kind: str, run: Run, output: Path, chance: random.Random) -> None:
    """One fault; unless torchrun starts the processes anew by itself, the run is over after it."""
    if kind == "SIGKILL of a process":
        os.kill(chance.choice(ranks(run)), signal.SIGKILL)
    elif kind == "SIGKILL of a loader process":
        os.kill(max(descendants(chance.choice(ranks(run)))), signal.SIGKILL)
    elif kind == "SIGTERM to the launcher":
        os.kill(run.pid, signal.SIGTERM)
        run.wait(timeout=60)
    elif kind == "SIGUSR1 to a process":
        os.kill(chance.choice(ranks(run)), signal.SIGUSR1)
    else:
        run.kill()  # launcher and all
        newest_file = max(output.glob("model_0*.pth"))
        if kind == "SIGKILL of all, newest checkpoint cut":
            os.truncate(newest_file, newest_file.stat().st_size // 2)
        elif kind == "SIGKILL of all, newest checkpoint with a flipped bit":
            data = bytearray(newest_file.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            newest_file.write_bytes(data)
        elif kind == "SIGKILL of all, pointer emptied":
            (output / "last_checkpoint").write_bytes(b"")


KINDS = [
    "SIGKILL of a process",
    "SIGKILL of a loader process",
    "SIGTERM to the launcher",
    "SIGUSR1 to a process",
    "SIGKILL of all",
    "SIGKILL of all, newest checkpoint cut",
    "SIGKILL of all, newest checkpoint with a flipped bit",
    "SIGKILL of all, pointer emptied",
]


def wait_until(run: Run, output: Path, iteration: int) -> None:
    """Until an iteration is saved, or the run has ended."""
    wait_for(lambda: newest(output) >= iteration or run.process.poll() is not None, 300)


def disturbed(data: str, output: Path, iterations: int) -> Counter[str]:
    chance, injected = random.Random(SEED), Counter[str]()
    target, run = 0, Run(words(data, output, iterations))
    while True:
        target += chance.randrange(60, 140)
        if target < iterations - 20:
            wait_until(run, output, target)
            time.sleep(chance.uniform(0, 3))
            if run.process.poll() is None:
                kind = KINDS[sum(injected.values()) % len(KINDS)]
                with contextlib.suppress(ValueError, ProcessLookupError):  # between two lives
                    inject(kind, run, output, chance)
                    injected[kind] += 1
            wait_until(run, output, target + 1)
            if run.process.poll() is None:
                continue
        else:
            run.process.wait(600)
            if run.process.returncode == 0:
                break
        run.kill()
        wait_for(lambda: not processes_of(str(output)), timeout=60)
        print(f"iteration {newest(output)}: {sum(injected.values())} faults", flush=True)
        run = Run(words(data, output, iterations))
    return injected


def main(folder: Path, iterations: int) -> None:
    data = images(folder)
    start = time.monotonic()
    run = Run(words(data, folder / "undisturbed", iterations))
    watch = Watch(run)
    watch.start()
    code, text = run.wait(timeout=3600)
    seconds = time.monotonic() - start
    watch.done.set()
    assert code == 0, text[-3000:]
    print(f"undisturbed: {iterations} iterations in {seconds:.0f} s")
    for line in watch.growth(iterations, seconds):
        print(json.dumps(line), flush=True)

    injected = disturbed(data, folder / "disturbed", iterations)
    for kind, count in injected.items():
        print(f"{count:3d} x {kind}")
    ends = [saved_state(folder / name) for name in ("undisturbed", "disturbed")]
    differ = changed(*ends)
    lists = [(folder / n / "bad_images.txt").read_text() for n in ("undisturbed", "disturbed")]
    print(f"{len(ends[0])} tensors at the end, of which {len(differ)} differ: {differ[:5]}")
    print(f"lists of bad images equal: {lists[0] == lists[1]} ({lists[0].count(chr(10))} images)")
    steps = [
        name for name in ("undisturbed", "disturbed") for _ in (folder / name / "debug").glob("*")
    ]
    print(f"reports of undone steps: {Counter(steps)}")
    sys.exit(bool(differ) or lists[0] != lists[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
