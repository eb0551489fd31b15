"""The status line, the scalars of health, the warning of a collapse."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from detco_d2.engine.health import HealthHook, duration


def toy_detco(length=10):
    monitor = SimpleNamespace(closely=False)
    queue = SimpleNamespace(features=torch.zeros(1, length, 2), num_enqueued=torch.tensor(0))
    views = ["global_query", "global_key", "local_query"]
    return SimpleNamespace(
        monitor=monitor,
        queue=queue,
        families=["gg", "gl"],
        stage_weights={"res4": 0.5, "res5": 1.0},
        views=views,
    )


def follow(hook, steps, scalars=lambda i: {}, start=0, batch=4):
    """Call the hook as a trainer does, over steps that record what `scalars` says."""
    trainer = hook.trainer = SimpleNamespace(start_iter=start, max_iter=start + steps)
    with EventStorage(start) as trainer.storage:
        hook.before_train()
        for trainer.iter in range(start, start + steps):
            trainer.storage.iter = trainer.iter
            hook.before_step()
            trainer.storage.put_scalars(**scalars(trainer.iter))
            hook.detco.queue.num_enqueued += batch
            hook.after_step()
    return trainer.storage


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.module == "health"]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_the_status_line_says_progress_loss_accuracy_geometry_queues_and_speed(said):
    def scalars(i):
        result = {"total_loss": 5.0 + (i % 2), "time": 2.0, "data_time": 0.5, "lr": 0.0123}
        for k, (family, view) in enumerate((("gg", "global"), ("gl", "local"))):
            for stage, value in (("res4", 0.25), ("res5", 0.5)):
                result[f"top1/{family}_{stage}"] = value + k / 10
                result[f"top5/{family}_{stage}"] = value + k / 5
                result[f"alignment/{family}_{stage}"] = 1 + value
                result[f"uniformity/{view}_{stage}"] = -3 - value
                result[f"spread/{view}_{stage}"] = value - k / 10
        return result

    storage = follow(HealthHook(toy_detco(length=1000), 4), 300, scalars)
    total = 2 * 1.5 * math.log(1001)
    memory = f" | memory {0.0:.1f} GiB" if torch.cuda.is_available() else ""
    assert lines(said)[0] == (
        "The loss rises until the queues are full at iteration 250; chance is then log(K + 1) = "
        f"6.91 for each term, and {total:.2f} for the total loss."
    )
    assert lines(said)[2] == (
        "iteration 20 of 300 (6 %), 9 min left | loss 5.50 (chance 20.73) | top-1 % of res4/res5: "
        "gg 25/50, gl 35/60 (chance 0.1) | "
        "spread global 0.25/0.50, local 0.15/0.40 | "
        "queues 8 % full, the loss rises until iteration 250 | 2.0 images/s, waiting for data 25 % "
        f"(raise DATALOADER.NUM_WORKERS if cores are idle) | lr 0.012{memory}"
    )
    assert "queues full, oldest key 250 iterations" in lines(said)[-1]
    assert "iteration 300 of 300 (100 %), 0 s left" in lines(said)[-1]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["queue/filled"] == 1 and latest["chance/loss"] == math.log(1001)
    assert latest["images_per_second"] == 2 and latest["data_time_share"] == 0.25


def test_a_line_comes_at_the_first_the_last_and_each_20th_iteration_which_are_watched(said):
    hook = HealthHook(toy_detco(), 4)
    watched = []
    follow(hook, 45, lambda i: watched.append(hook.detco.monitor.closely) or {})
    assert [i for i, closely in enumerate(watched) if closely] == [0, 19, 39, 44]
    done = [int(line.split()[1]) for line in lines(said)[1:]]
    assert done == [1, 20, 40, 45]


def test_a_resumed_run_counts_on_and_knows_its_queues(said):
    detco = toy_detco()
    detco.queue.num_enqueued += 6  # of 10
    follow(HealthHook(detco, 4), 1, start=7)
    assert "until the queues are full at iteration 8;" in lines(said)[0]
    detco.queue.num_enqueued += 100
    said.clear()
    follow(HealthHook(detco, 4), 1, start=8)
    assert lines(said)[0].startswith("The queues are full; chance is then log(K + 1) = 2.40")


def test_undone_steps_neither_fill_the_queues_nor_spoil_the_line(said):
    hook = HealthHook(toy_detco(length=100), 4)
    follow(hook, 20, lambda i: {"total_loss": math.nan if i == 5 else 3.0}, batch=0)
    assert "loss 3.00" in lines(said)[-1] and "gg nan/nan" in lines(said)[-1]
    assert "queues 0 % full, the loss rises until iteration 45" in lines(said)[-1]


@pytest.mark.parametrize(
    "spread, times",
    [
        (30 * [0.001], 1),
        (10 * [0.0] + 10 * [0.5] + 10 * [0.0], 2),
        (8 * [0.5] + 2 * [0.0], 0),  # a moment
    ],
)
def test_a_collapse_is_warned_of_once_each_time_it_comes_for_its_stage(caplog, spread, times):
    hook = HealthHook(toy_detco(), 4)
    hook.collapse_period = 10
    names = "spread/global_res2", "spread/local_res5"
    follow(hook, len(spread), lambda i: dict(zip(names, (0.9, spread[i]))))
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == times
    for text in said:
        assert "the local res5 embeddings have collapsed" in text and "global res2" not in text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h"), (172800, "2.0 days")],
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text
