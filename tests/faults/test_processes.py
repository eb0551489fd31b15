"""A process that raises, dies or hangs ends the job in time, says why, and leaves no orphan."""

import os
import re
import signal
import sys
import time

import pytest

from ..conftest import ROOT
from .harness import Run, command, descendants, processes_of, wait_for

TIMEOUT = 8  # SOLVER.COLLECTIVE_TIMEOUT, seconds


def start(scenes, output, rank, how, processes=2):
    settings = ["SOLVER.MAX_ITER", 100000, "SOLVER.COLLECTIVE_TIMEOUT", TIMEOUT]
    settings += ["DATALOADER.NUM_WORKERS", 1]
    words = command(f"{scenes}/train", output, *settings, processes=processes)
    at = words.index("pretrain_net.py")
    words[at : at + 1] = [os.path.join(ROOT, "tests", "faults", "failing_rank.py"), str(rank), how]
    return Run(words)


@pytest.mark.parametrize(
    "processes, rank, how, message",
    [
        (2, 1, "raise", "KeyError: 'planted'"),
        (2, 1, "die", "exitcode  : -9"),
        (2, 0, "hang", "imed out"),
        (2, 1, "die_loader", "Lower DATALOADER.NUM_WORKERS if memory ran out"),
        (2, 1, "hang_loader", "DataLoader timed out after 8 seconds"),
        (1, 0, "die_loader", "A loader process died or hangs: .*DATALOADER.NUM_WORKERS"),
    ],
)
def test_a_process_that_fails_ends_the_job(scenes, tmp_path, processes, rank, how, message):
    run = start(scenes, tmp_path, rank, how, processes)
    run.until(lambda: "Starting training" in run.text())
    since = time.monotonic()
    code, text = run.wait(timeout=120)
    # a process that hangs is not reached by torchrun's SIGTERM, only by its SIGKILL 30 s later
    assert time.monotonic() - since < TIMEOUT + 30 + 25
    assert code == 1
    assert re.search(message, text), text[-4000:]
    if how == "raise":
        assert f"[rank{rank}]: KeyError: 'planted'" in text  # torch names the process
        assert "failing_rank.py" in text  # and the line
    wait_for(lambda: not processes_of(str(tmp_path)), timeout=20)


def test_the_launchers_death_takes_all_processes_along(scenes, tmp_path):
    run = start(scenes, tmp_path, 9, "raise")
    run.until(lambda: "iteration 20 of " in run.text())
    assert len(descendants(run.pid)) >= 4
    os.kill(run.pid, signal.SIGKILL)
    run.process.wait()
    wait_for(lambda: not processes_of(str(tmp_path)), timeout=30)
    assert list(tmp_path.glob("model_0*.pth"))  # they were asked to stop, and saved


def test_a_signal_to_detectron2s_launcher_reaches_its_processes_once(tmp_path):
    """Its GPU processes stood in for by plain ones, which end with the telling code."""
    code = (
        "import multiprocessing, time\n"
        "from detco_d2.engine.launch import _run_and_forward_signals\n"
        "from detco_d2.engine.stopping import StopRequest\n"
        "import torch.multiprocessing as mp\n"
        "def work(rank):\n"
        "    with StopRequest(60) as stop:\n"
        "        print('ready', flush=True)\n"
        "        while not stop.number: time.sleep(0.05)\n"
        "        raise SystemExit(128 + stop.number)\n"
        "if __name__ == '__main__':\n"
        "    start = lambda: mp.start_processes(work, nprocs=2, start_method='fork')\n"
        "    _run_and_forward_signals(start)\n"
    )
    (tmp_path / "spawner.py").write_text(code)
    run = Run([sys.executable, "-W", "ignore", str(tmp_path / "spawner.py")])
    run.until(lambda: run.text().count("ready") == 2)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(timeout=30)[0] == 143
    wait_for(lambda: not processes_of(str(tmp_path)), timeout=10)
