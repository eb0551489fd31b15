"""A saver that is killed again and again: `python -m tests.faults.saver FOLDER KILLS SEED`.

Forks a process that saves without pause, kills it after a random time, looks at what is left, and
lets the next one go on from there. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from detco_d2.weights.saving import DurableCheckpointer, newest_intact


def save(folder: str | Path, *iterations: int, keep: int | None = None, size: int = 50) -> None:
    for iteration in iterations:
        model = torch.nn.Linear(size, size)
        torch.nn.init.constant_(model.weight, iteration)
        checkpointer = DurableCheckpointer(model, str(folder), keep=keep)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def save_for_ever(folder: str, first: int, report: int) -> None:
    """Writes the number of each save that has returned to a pipe."""
    iteration = first
    while True:
        save(folder, iteration, keep=3, size=500)
        os.write(report, f"{iteration}\n".encode())
        iteration += 1


def kill_once(folder: str, first: int, seconds: float) -> int:
    """The last save that returned before the kill, or first - 1."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(folder, first, writer)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        reported = file.read().split()
    return int(reported[-1]) if reported else first - 1


def main(folder: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    torch.set_num_threads(1)
    result = {"kills": 0, "saves": 0, "half_written": 0, "lost": 0, "wrong": 0, "files": 0}
    started, last = time.perf_counter(), 4
    save(folder, *range(last + 1), keep=3, size=500)
    usual = (time.perf_counter() - started) / (last + 1)  # of a save on this machine, now
    while result["kills"] < kills:
        reported = kill_once(folder, last + 1, chance.uniform(0.0, 4 * usual))
        result["kills"] += 1
        result["saves"] += reported - last
        result["half_written"] += any(Path(folder).glob(".*"))
        path = newest_intact(folder)
        if path is None:
            result["lost"] += reported >= 0
            continue
        data = torch.load(path, weights_only=True)
        result["lost"] += data["iteration"] < reported
        result["wrong"] += not bool((data["model"]["weight"] == data["iteration"]).all())
        last = data["iteration"]
    save(folder, last + 1, keep=3, size=500)  # in peace: what the kills have left over goes
    result["files"] = len(os.listdir(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
