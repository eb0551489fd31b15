"""Exact resume: what was killed and went on ends where the undisturbed run ends, bit for bit."""

import random
import time

import numpy
import pytest
import torch
from detectron2.engine import HookBase

from ..engine.test_pretrain import make_trainer
from .harness import Run, changed, command, finish, processes_of, saved_state, wait_for


def checkpoints(output):
    return sorted(path.name for path in output.glob("model_0*.pth"))


def run_and_kill(words, output, kills, seed):
    """Start a run, kill it when it has saved again and some time has passed, and so on."""
    chance = random.Random(seed)
    for _ in range(kills):
        before = checkpoints(output)
        run = Run(words)
        run.until(lambda before=before: checkpoints(output) != before)
        time.sleep(chance.uniform(0, 0.5))
        run.kill()
        wait_for(lambda: not processes_of(str(output)), timeout=20)


def assert_equal_ends(ours, theirs):
    ours, theirs = saved_state(ours), saved_state(theirs)
    assert ours.keys() == theirs.keys() and len(ours) > 500
    assert changed(ours, theirs) == []


@pytest.mark.parametrize(
    "processes, workers, kills",
    [
        (1, 2, 1),
        (2, 1, 1),
        pytest.param(1, 2, 20, marks=pytest.mark.slow),
        pytest.param(2, 1, 10, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(scenes, tmp_path, processes, workers, kills):
    """The same command line each time; weights, queues, statistics, momenta and schedule."""
    iterations = 40 if kills == 1 else 200
    settings = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 10 if kills == 1 else 3]
    settings += ["DATALOADER.NUM_WORKERS", workers]

    def words(output):
        return command(f"{scenes}/train", output, *settings, processes=processes)

    finish(words(tmp_path / "straight"), want=0)
    run_and_kill(words(tmp_path / "killed"), tmp_path / "killed", kills, seed=0)
    _, text = finish(words(tmp_path / "killed"), want=0)
    assert "Starting training from iteration" in text and "from iteration 0" not in text
    assert_equal_ends(tmp_path / "killed", tmp_path / "straight")


def test_every_steps_random_numbers_are_those_of_the_undisturbed_run(scenes, tmp_path):
    """Python's, numpy's and torch's, which a backbone with dropout would use."""

    def drawn(trainer):
        numbers = []

        class Draw(HookBase):
            def after_step(self):
                numbers.append((random.random(), numpy.random.rand(), torch.rand(1).item()))

        trainer.register_hooks([Draw()])
        trainer.train()
        return numbers

    straight = drawn(make_trainer(scenes, tmp_path / "straight", 4))
    first = make_trainer(scenes, tmp_path / "resumed", 4)
    first.max_iter = 2
    first.train()
    second = make_trainer(scenes, tmp_path / "resumed", 4, "SEED", 99)  # the run's seed, not this
    second.resume_or_load(resume=True)
    assert drawn(second) == straight[2:]
    assert len(set(straight)) == 4


@pytest.mark.parametrize("before, after", [(1, 3), (2, 1)])
def test_another_number_of_processes_continues_with_a_note(scenes, tmp_path, before, after):
    def words(processes, epochs):  # of two iterations
        settings = ["SOLVER.MAX_EPOCHS", epochs, "SOLVER.IMS_PER_BATCH", 6]
        settings += ["--resume"] if processes == after else []
        return command(f"{scenes}/train", tmp_path, *settings, processes=processes)

    finish(words(before, 1), want=0)
    _, text = finish(words(after, 3), want=0)
    assert f"'processes': ({before}, {after})" in text
    end = saved_state(tmp_path)
    assert end["/trainer/iteration"] == 5 and end["/model/queue.num_enqueued"] == 36
