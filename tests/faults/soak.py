"""A long run under every fault at once, against an undisturbed one.

    python -m tests.faults.soak FOLDER [ITERATIONS]

Two CPU processes with a loader process each train on images of which some are broken, and some
steps give NaN: in both runs. One of them is killed, stopped, and has its checkpoints damaged all
the time. Prints what was injected, and whether the ends are equal.
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from detco_d2.data.synthetic import write_scenes

from ..conftest import ROOT
from .harness import Run, changed, command, descendants, processes_of, ranks, saved_state, wait_for

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


def words(data: str, output: Path, iterations: int) -> list[str]:
    settings = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 20]
    settings += ["DATALOADER.NUM_WORKERS", 1, "DATALOADER.MAX_BAD_FRACTION", 0.1]
    settings += ["SOLVER.COLLECTIVE_TIMEOUT", 60]
    result = command(data, output, *settings, processes=2, restarts=2)
    result[result.index("pretrain_net.py")] = os.path.join(ROOT, "tests", "faults", "poisoned.py")
    return result


def newest(output: Path) -> int:
    return max((int(path.stem[-7:]) for path in output.glob("model_0*.pth")), default=-1)


FAULTS = ("process", "loader", "stop", "stop one", "all", "cut", "flipped bit", "no pointer")


def inject(fault: str, run: Run, output: Path, chance: random.Random) -> None:
    """One fault; unless torchrun starts the processes anew by itself, the run is over after it."""
    if fault == "process":
        os.kill(chance.choice(ranks(run)), signal.SIGKILL)
    elif fault == "loader":
        os.kill(max(descendants(chance.choice(ranks(run)))), signal.SIGKILL)
    elif fault == "stop":
        os.kill(run.pid, signal.SIGTERM)
        run.wait(timeout=60)
    elif fault == "stop one":
        os.kill(chance.choice(ranks(run)), signal.SIGUSR1)
    else:
        run.kill()
        checkpoint = max(output.glob("model_0*.pth"))
        data = bytearray(checkpoint.read_bytes())
        if fault == "cut":
            checkpoint.write_bytes(data[: len(data) // 2])
        elif fault == "flipped bit":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            checkpoint.write_bytes(data)
        elif fault == "no pointer":
            (output / "last_checkpoint").write_bytes(b"")


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
                fault = FAULTS[injected.total() % len(FAULTS)]
                with contextlib.suppress(IndexError, ValueError, ProcessLookupError):
                    inject(fault, run, output, chance)  # or between two lives there is no process
                    injected[fault] += 1
            wait_until(run, output, target + 1)
            if run.process.poll() is None:
                continue
        else:
            run.process.wait(600)
            if run.process.returncode == 0:
                break
        run.kill()
        wait_for(lambda: not processes_of(str(output)), timeout=60)
        print(f"iteration {newest(output)}: {injected.total()} faults", flush=True)
        run = Run(words(data, output, iterations))
    return injected


def main(folder: Path, iterations: int) -> None:
    data = images(folder)
    code, text = Run(words(data, folder / "undisturbed", iterations)).wait(timeout=3600)
    assert code == 0, text[-3000:]
    injected = disturbed(data, folder / "disturbed", iterations)
    print("faults:", dict(injected))
    ends = [saved_state(folder / name) for name in ("undisturbed", "disturbed")]
    lists = [(folder / n / "bad_images.txt").read_text() for n in ("undisturbed", "disturbed")]
    differ = changed(*ends)
    print(f"{len(ends[0])} tensors at the end, of which {len(differ)} differ: {differ[:5]}")
    print(f"lists of bad images equal: {lists[0] == lists[1]} ({lists[0].count(chr(10))} images)")
    sys.exit(bool(differ) or lists[0] != lists[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
