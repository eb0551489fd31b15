"""Real keys before the first step: nothing but the queues changes, whatever happens meanwhile."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from detco_d2.modeling.detco import DetCo

from .test_pretrain import assert_same_state, make_trainer, straight_and_resumed

FILL = ["MODEL.DETCO.QUEUE_FILL", True]


class AtFirstStep(HookBase):
    """Keeps the model and the random numbers as the first step finds them, and what it reads."""

    def before_step(self):
        step = self.trainer._trainer
        self.state = {name: value.clone() for name, value in step.detco.state_dict().items()}
        self.numbers, self.views = torch.get_rng_state(), {}
        finish = step.mapper.finish

        def keep(part, device):
            self.views.update(part)
            return finish(part, device)

        step.mapper.finish = keep


def start(scenes, output, *settings):
    """A run of one step: the model and the random numbers before it, its views, the trainer."""
    trainer = make_trainer(scenes, output, 1, *settings)
    look = AtFirstStep()
    trainer.register_hooks([look])
    trainer.train()
    return look.state, look.numbers, look.views, trainer


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["MODEL.DETCO.QUEUE_LENGTH", 30, "DATALOADER.NUM_WORKERS", 2],  # of 12 images
        ["MODEL.DETCO.FAMILIES", ["gg"], "INPUT.DETCO.AUGMENTATION", "device"],  # as MoCo v2
        ["SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.AMP.ENABLED", True],
    ],
    ids=["detco", "more_than_the_data", "one_family", "parts"],
)
def test_the_queues_start_full_and_all_else_as_without_it(scenes, tmp_path, settings):
    size = ["INPUT.DETCO.LOCAL_SIZE", 96, "INPUT.DETCO.PATCH_SIZE", 32]  # for bfloat16
    without, numbers, views, _ = start(scenes, tmp_path / "without", *size, *settings)
    state, same_numbers, same_views, trainer = start(
        scenes, tmp_path / "filled", *size, *settings, *FILL
    )
    random, keys = without.pop("queue.features"), state.pop("queue.features")
    assert (random != keys).any(dim=2).all()
    assert torch.allclose(keys.norm(dim=2), torch.ones(()), atol=1e-3)
    assert without.pop("queue.num_enqueued") == 0
    assert state.pop("queue.num_enqueued") == -(-random.shape[1] // 4) * 4
    assert_same_state(state, without)
    assert torch.equal(numbers, same_numbers)
    assert same_views.pop("file_name") == views.pop("file_name")
    assert_same_state(same_views, views)
    assert trainer.storage.history("total_loss").latest() > 0


def test_a_run_is_filled_once_and_resumes_exactly(scenes, tmp_path):
    def make(name, iterations):
        return make_trainer(scenes, tmp_path / name, iterations, *FILL)

    straight, second = straight_and_resumed(make, 4, stop=2)
    assert second.model.queue.num_enqueued == 12 + 16


def test_unreadable_images_are_replaced_and_listed(scenes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = tmp_path / "images"
    images.mkdir()
    for file in Path(scenes, "train").glob("*.jpg"):
        (images / file.name).symlink_to(file)
    (images / "bad.jpg").write_bytes(b"no image")
    settings = ["DATASETS.TRAIN", (str(images),), "MODEL.DETCO.QUEUE_LENGTH", 26]
    state, _, _, trainer = start(
        scenes, tmp_path / "out", *settings, *FILL, "DATALOADER.MAX_BAD_FRACTION", 0.2
    )
    assert state["queue.num_enqueued"] == 28  # two epochs
    assert [Path(path).name for path in trainer.bad_images.reasons] == ["bad.jpg"]
    assert "The queues are full; chance is" in caplog.text and "rises" not in caplog.text
    assert "bad.jpg" in (tmp_path / "out/bad_images.txt").read_text()


def test_a_signal_meanwhile_ends_the_run_and_the_next_start_fills_again(
    scenes, tmp_path, monkeypatch
):
    expected = start(scenes, tmp_path / "straight", *FILL)[0]
    encode = DetCo.encode_keys

    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, batch)

    monkeypatch.setattr(DetCo, "encode_keys", interrupted)
    with pytest.raises(SystemExit) as end:
        start(scenes, tmp_path / "out", *FILL)
    assert end.value.code == 143 and not list((tmp_path / "out").glob("*.pth"))
    monkeypatch.undo()
    assert_same_state(start(scenes, tmp_path / "out", *FILL)[0], expected)
