"""Steps whose loss, key or gradient is no number leave no trace."""

import math

import pytest
import torch

from detco_d2.engine.guard import MAX_REPORTS, NonFiniteSteps
from detco_d2.modeling import detco as detco_module

from ..conftest import R18
from ..engine.test_pretrain import make_trainer
from .harness import changed, state_of


def poison_gradient(trainer, value):
    weight = trainer.model.query_encoder.local_heads["res4"].out.weight
    return weight.register_hook(lambda grad: grad.fill_(value))


def poison_module(module, value):
    return module.register_forward_hook(lambda _, inputs, x: x + value if torch.is_tensor(x) else x)


KEYS = "keys of one stage"
POISONS = {
    "a gradient that is NaN": lambda t: poison_gradient(t, math.nan),
    "a gradient that is infinite": lambda t: poison_gradient(t, math.inf),
    KEYS: lambda t: poison_module(t.model.key_encoder.global_heads["res3"].out, math.nan),
    "queries": lambda t: poison_module(t.model.query_encoder.local_heads["res5"].out, math.inf),
    "activations": lambda t: poison_module(t.model.query_encoder.backbone.stem, math.nan),
}


class PoisonAt:
    """Poisons one iteration of a trainer, and looks at the state before and after it."""

    def __init__(self, trainer, poison, iterations):
        self.trainer, self.poison, self.iterations = trainer, poison, iterations
        self.before, self.after = [], []
        self.run_step = trainer._trainer.run_step
        trainer._trainer.run_step = self

    def __call__(self):
        if self.trainer.iter not in self.iterations:
            self.run_step()
            return
        self.before.append(state_of(self.trainer._trainer))
        handle = self.poison(self.trainer)
        try:
            self.run_step()
        finally:
            handle.remove()
            self.after.append(state_of(self.trainer._trainer))


@pytest.mark.parametrize("what, parts", [(what, 1) for what in POISONS] + [(KEYS, 2)])
def test_a_step_without_a_number_changes_nothing_bit_for_bit(scenes, tmp_path, caplog, what, parts):
    trainer = make_trainer(scenes, tmp_path, 4, "SOLVER.ACCUMULATION_STEPS", parts)
    spy = PoisonAt(trainer, POISONS[what], [2])
    trainer.train()
    (before,), (after,) = spy.before, spy.after
    assert before.keys() == after.keys() and any("momentum_buffer" in name for name in before)
    assert changed(before, after) == []
    assert "Step 2 is undone" in caplog.text and "(1 in a row)" in caplog.text
    assert all(value.isfinite().all() for value in state_of(trainer._trainer).values())
    assert trainer.model.queue.num_enqueued == 12  # three steps of four images, not four
    assert trainer.storage.history("nonfinite_steps").latest() == 1


def test_without_the_undoing_that_state_would_differ(scenes, tmp_path, monkeypatch):
    """So the test above can fail."""
    monkeypatch.setattr(detco_module.DetCo, "undo_step", lambda self: None)
    trainer = make_trainer(scenes, tmp_path, 3)
    spy = PoisonAt(trainer, POISONS[KEYS], [2])
    trainer.train()
    differ = changed(spy.before[0], spy.after[0])
    assert any("running_mean" in name for name in differ)


def test_the_report_names_the_level_the_rate_and_the_files_and_loads_as_data(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 2, *R18)  # a report names 20 gradients at most
    PoisonAt(trainer, POISONS[KEYS], [1])
    trainer.train()
    report = torch.load(tmp_path / "debug" / "nonfinite_0000001.pt", weights_only=True)
    bad = sorted(name for name, value in report["losses"].items() if not math.isfinite(value))
    assert bad == ["loss_gg_res3", "loss_gl_res3"]
    assert report["iteration"] == 1 and 0 < report["learning_rate"] < 0.03
    (process,) = report["processes"]
    assert len(process["file_name"]) == 4 and process["file_name"][0].endswith(".jpg")
    assert process["losses"].keys() == report["losses"].keys()
    assert any("res3" in name for name in report["nonfinite_gradients"])
    assert report["torch_rng_state"].dtype == torch.uint8


def test_training_stops_after_so_many_in_a_row_and_the_reports_are_bounded(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 20, "SOLVER.MAX_NONFINITE_STEPS", 4)
    spy = PoisonAt(trainer, POISONS[KEYS], [0, 1, 3, *range(5, 20)])
    with pytest.raises(FloatingPointError, match=r"Step 9 is undone.*\(5 in a row\).*allows 4"):
        trainer.train()
    assert len(spy.after) == 3 + 5  # not stopped by the three before, between which steps passed
    reports = sorted(path.name for path in (tmp_path / "debug").iterdir())
    assert reports == [f"nonfinite_{i:07d}.pt" for i in (0, 1, 3)] and len(reports) == MAX_REPORTS
    assert changed(spy.before[-1], spy.after[-1]) == []


def test_a_report_that_cannot_be_written_does_not_end_the_run(caplog):
    steps = NonFiniteSteps(1, "/proc/self")  # where no file can be made
    steps.failed({"iteration": 0, "losses": {"loss": math.nan}})
    assert "Cannot write /proc/self/nonfinite_0000000.pt" in caplog.text


def test_the_numbers_of_a_long_run_do_not_pile_up_in_memory(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 1)
    trainer.train()
    with trainer.storage:
        for _ in range(3000):
            trainer.storage.put_scalar("total_loss", 1.0)
            trainer.storage.put_scalar("new", 1.0)
    for name in ("total_loss", "new"):
        assert len(trainer.storage.history(name).values()) == 1000
    assert trainer.storage.history("new").global_avg() == 1.0
