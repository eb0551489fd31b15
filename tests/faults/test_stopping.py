"""Signals: the step is finished and saved, the code tells, the same command line goes on."""

import os
import signal
import stat
import sys
import time

import pytest
import torch

from ..conftest import ROOT
from ..warm import CLIENT, server
from .harness import REAL, Run, command, finish, processes_of, ranks, saved_state, wait_for
from .test_resume import assert_equal_ends


def is_training(run):
    return "iteration 20 of " in run.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_a_saved_step_and_it_goes_on(scenes, tmp_path, number):
    words = command(f"{scenes}/train", tmp_path / "stopped", "SOLVER.MAX_ITER", 45)
    run = Run(words)
    run.until(lambda: is_training(run))
    os.kill(run.pid, number)
    code, text = run.wait(timeout=30)
    assert code == 128 + number, text[-3000:]
    (saved,) = (tmp_path / "stopped").glob("model_0*.pth")
    iteration = torch.load(saved, weights_only=True)["trainer"]["iteration"]
    assert saved.name == f"model_{iteration:07d}.pth" and 19 <= iteration < 44
    assert f"Stopped by signal {int(number)} after iteration {iteration}" in text
    assert not processes_of(str(tmp_path))
    if number == signal.SIGTERM:
        assert f"Starting training from iteration {iteration + 1}" in finish(words, want=0)[1]
        words = command(f"{scenes}/train", tmp_path / "straight", "SOLVER.MAX_ITER", 45)
        assert finish(words)[0] == 0
        assert_equal_ends(tmp_path / "stopped", tmp_path / "straight")


def test_one_of_two_processes_is_asked_and_both_stop_after_the_same_step(scenes, tmp_path):
    settings = ["SOLVER.MAX_ITER", 2000, "DATALOADER.NUM_WORKERS", 1]
    run = Run(command(f"{scenes}/train", tmp_path, *settings, processes=2))
    run.until(lambda: is_training(run))
    os.kill(ranks(run)[1], signal.SIGUSR1)
    code, text = run.wait(timeout=60)
    assert code != 0 and "exitcode  : 138" in text, text[-3000:]
    (saved,) = tmp_path.glob("model_0*.pth")
    assert f"Stopped by signal 10 after iteration {int(saved.stem[-7:])}" in text
    wait_for(lambda: not processes_of(str(tmp_path)), timeout=20)


def test_torchruns_own_stop_reaches_every_process_and_loses_nothing(scenes, tmp_path):
    settings = ["SOLVER.MAX_ITER", 60, "DATALOADER.NUM_WORKERS", 1]
    words = command(f"{scenes}/train", tmp_path, *settings, processes=2)
    run = Run([*REAL, *words])
    run.until(lambda: is_training(run))
    os.kill(run.pid, signal.SIGTERM)
    _, text = run.wait()
    wait_for(lambda: not processes_of(str(tmp_path)), timeout=20)
    (saved,) = tmp_path.glob("model_0*.pth")
    code, text = finish(words)
    assert code == 0 and f"Starting training from iteration {int(saved.stem[-7:]) + 1}" in text


def listener(patience):
    """A process that listens for signals and never stops by itself."""
    code = (
        "import time; from detco_d2.engine.stopping import StopRequest\n"
        f"with StopRequest({patience}) as stop:\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
    )
    run = Run([sys.executable, "-W", "ignore", "-c", code])
    run.until(lambda: "ready" in run.text())
    return run


def test_a_second_signal_ends_the_process_at_once():
    run = listener(patience=60)
    os.kill(run.pid, signal.SIGTERM)
    os.kill(run.pid, signal.SIGTERM)  # the same request, by two ways
    time.sleep(1.2)
    assert run.process.poll() is None
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(timeout=10)[0] == 143


def test_a_process_that_does_not_stop_in_time_is_ended():
    run = listener(patience=1)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(timeout=10)[0] == -signal.SIGALRM


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_torchruns_restarts_continue_from_the_last_checkpoint(scenes, tmp_path, kills):
    """A process dies so many times over a run; torchrun starts all anew each time."""
    settings = ["SOLVER.MAX_ITER", 20 * kills, "SOLVER.CHECKPOINT_PERIOD", 5, "--overwrite"]
    settings += ["DATALOADER.NUM_WORKERS", 1]
    output = tmp_path / "killed"
    run = Run(command(f"{scenes}/train", output, *settings, processes=2, restarts=kills))
    for kill in range(1, kills + 1):
        run.until(lambda kill=kill: (output / f"model_{15 * kill - 1:07d}.pth").exists())
        os.kill(ranks(run)[kill % 2], signal.SIGKILL)
        time.sleep(1)
    code, text = run.wait(timeout=120)
    assert code == 0, text[-3000:]
    assert text.count("Starting training from iteration") == kills + 1
    straight = tmp_path / "straight"
    assert finish(command(f"{scenes}/train", straight, *settings, processes=2))[0] == 0
    assert_equal_ends(output, straight)


def test_the_slurm_example_is_requeued_and_continues(scenes, tmp_path):
    """With stand-ins for SLURM's commands: srun runs what it is given, scontrol is noted."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    torchrun = ["-W", "ignore", "-m", "torch.distributed.run"]
    warm = CLIENT.format(python=sys.executable, path=server(), start=torchrun)
    (stand_ins / "warm").write_text(warm)
    (stand_ins / "warm").chmod(stat.S_IRWXU)
    real = " ".join([sys.executable, *torchrun])
    for name, body in {
        "srun": 'exec "$@"',
        "scontrol": f'echo "scontrol $*" >> {tmp_path}/scontrol.txt; echo localhost',
        "torchrun": f'[ "$SLURM_RESTART_COUNT" ] && exec warm "$@"; exec {real} "$@"',
    }.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{body}\n")
        (stand_ins / name).chmod(stat.S_IRWXU)
    output = tmp_path / "out"
    words = ["bash", os.path.join(ROOT, "tools", "slurm.sh")]
    words += command(f"{scenes}/train", output, "SOLVER.MAX_ITER", 60)[4:]
    environment = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    environment |= {"SLURM_GPUS_ON_NODE": "2", "PATH": f"{stand_ins}:{os.environ['PATH']}"}
    run = Run(words, **environment)
    run.until(lambda: is_training(run))
    os.kill(run.pid, signal.SIGUSR1)  # what `#SBATCH --signal=B:USR1@300` sends to the script
    code, text = run.wait(timeout=60)
    assert "scontrol requeue 17" in (tmp_path / "scontrol.txt").read_text(), text[-3000:]
    (saved,) = output.glob("model_0*.pth")
    code, text = Run(words, **environment, SLURM_RESTART_COUNT="1").wait()
    assert code == 0 and f"Starting training from iteration {int(saved.stem[-7:]) + 1}" in text
    assert saved_state(output)["/trainer/iteration"] == 59
