"""The pretraining trainer: schedule, exact resume, checkpoints, metrics."""

import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from detco_d2.data.synthetic import register_scenes
from detco_d2.engine.pretrain import PretrainTrainer, recipe_pairs, with_schedule

from ..conftest import load_config, tiny_config
from ..data.test_tar import write_tar
from ..references import make_plain_sgd


def make_trainer(scenes, output, max_iter, *settings):
    data = ["DATASETS.TRAIN", (register_scenes(scenes, "train"),), "OUTPUT_DIR", str(output)]
    cfg = tiny_config(*data, "SOLVER.MAX_ITER", max_iter, *settings)
    os.makedirs(output, exist_ok=True)
    seed_all_rng(max(cfg.SEED, 0))
    return PretrainTrainer(cfg)


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def straight_and_resumed(make, iterations, stop):
    """A run of so many iterations, and one with the same schedule that stopped and went on."""
    straight = make("straight", iterations)
    straight.train()
    first = make("resumed", iterations)
    first.max_iter = stop  # what a crash leaves behind
    first.train()
    second = make("resumed", iterations)
    second.resume_or_load(resume=True)
    assert second.start_iter == stop
    second.train()
    assert_same_state(straight.model.state_dict(), second.model.state_dict())
    return straight, second


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_and_ten_resumed_iterations_equal_twenty_straight(scenes, tmp_path, workers):
    settings = ["DATALOADER.NUM_WORKERS", workers]

    def make(name, iterations):
        return make_trainer(scenes, tmp_path / name, iterations, *settings)

    straight, second = straight_and_resumed(make, 20, stop=10)
    momenta = [
        [t.optimizer.state[p]["momentum_buffer"] for p in t.model.parameters() if p.requires_grad]
        for t in (straight, second)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*momenta))
    assert second.model.queue.num_enqueued.item() == 80


def test_a_checkpoint_carries_everything_and_loads_with_weights_only(scenes, tmp_path):
    make_trainer(scenes, tmp_path, 2).train()
    data = torch.load(tmp_path / "model_final.pth", weights_only=True)
    names = data["model"].keys()
    for part in ("query_encoder.backbone.", "key_encoder.local_heads.res5", "queue.features"):
        assert any(name.startswith(part) for name in names), part
    assert data["input_spec"]["INPUT.FORMAT"] == "RGB"
    assert data["trainer"]["iteration"] == 1 and data["trainer"]["data_seed"] == 7
    assert data["trainer"]["_trainer"]["optimizer"]["state"]


def test_without_a_seed_a_resume_keeps_the_first_runs_stream(scenes, tmp_path):
    first = make_trainer(scenes, tmp_path, 1, "SEED", -1)
    first.train()
    second = make_trainer(scenes, tmp_path, 2, "SEED", -1)
    second.resume_or_load(resume=True)
    assert second.data_seed == first.data_seed


def test_what_goes_on_follows_its_own_rate_momentum_and_queue(scenes, tmp_path):
    make_trainer(scenes, tmp_path, 2, "SOLVER.BASE_LR", 0.1).train()
    second = make_trainer(scenes, tmp_path, 4, "SOLVER.BASE_LR", 0.01, "SOLVER.MOMENTUM", 0.5)
    second.resume_or_load(resume=True)
    for group, rate in zip(second.optimizer.param_groups, second.scheduler.get_lr()):
        assert (group["momentum"], group["initial_lr"], group["lr"]) == (0.5, 0.01, rate)
        assert 0 < rate <= 0.01
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    other = make_trainer(scenes, tmp_path / "b", 2, *weights, "MODEL.DETCO.QUEUE_LENGTH", 20)
    other.resume_or_load(resume=False)
    assert other.model.queue.num_enqueued == 0  # their keys have no place


def test_metrics_are_written_for_every_term(scenes, tmp_path):
    # 32-pixel patches: torch's bfloat16 convolutions go wrong on the CPU on maps of 1x1 pixels
    size = ["INPUT.DETCO.LOCAL_SIZE", 96, "INPUT.DETCO.PATCH_SIZE", 32]
    parts = ["SOLVER.ACCUMULATION_STEPS", 2]
    make_trainer(scenes, tmp_path, 20, "SOLVER.AMP.ENABLED", True, *size, *parts).train()
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    for stage in ("res2", "res3", "res4", "res5"):
        for family in ("gg", "gl", "ll"):
            assert last[f"loss_{family}_{stage}"] > 0
            # of equal similarities, which so small a network has, rounding decides the order
            assert 0 <= last[f"top1/{family}_{stage}"] <= last[f"top5/{family}_{stage}"] <= 1
            assert 0 < last[f"alignment/{family}_{stage}"] < 4
        for view in ("global", "local"):
            assert -8 < last[f"uniformity/{view}_{stage}"] <= 0
    assert last["queue/filled"] == 1
    assert last["chance/loss"] == math.log(11) and last["iteration"] == 19
    assert last["images_per_second"] > 0 and 0 <= last["data_time_share"] <= 1
    assert {"lr", "time"} <= last.keys()
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path))


def test_the_schedule_is_a_cosine_to_zero_without_warm_up(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 8)
    rates = []
    for _ in range(8):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.scheduler.step()
    expected = [0.03 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_the_query_side_alone_is_trained_in_one_fused_group_for_equal_settings(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 1)
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["momentum"], group["fused"]) == (1e-4, 0.9, True)
    trained = {id(p) for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.query_encoder.parameters()}
    groups = make_trainer(scenes, tmp_path, 1, "SOLVER.WEIGHT_DECAY_NORM", 0.0).optimizer
    assert sorted(group["weight_decay"] for group in groups.param_groups) == [0.0, 1e-4]


def test_epochs_become_iterations():
    paper = tiny_config("SOLVER.MAX_EPOCHS", 200, "SOLVER.IMS_PER_BATCH", 256)
    assert with_schedule(paper, 1281167).SOLVER.MAX_ITER == 1000800  # 5004 batches an epoch


def test_a_queue_longer_than_half_the_data_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        with_schedule(tiny_config("MODEL.DETCO.QUEUE_LENGTH", 10), 19)
    assert "At most half the number of images is advised: 9" in caplog.text
    caplog.clear()
    with_schedule(tiny_config("MODEL.DETCO.QUEUE_LENGTH", 10), 20)
    assert caplog.text == ""


def test_the_learning_rate_follows_the_batch_only_when_asked_and_says_so(caplog):
    batch = ["SOLVER.IMS_PER_BATCH", 8]
    assert with_schedule(tiny_config(*batch), 30).SOLVER.BASE_LR == 0.03
    with caplog.at_level(logging.INFO):
        cfg = with_schedule(tiny_config(*batch, "SOLVER.LR_REFERENCE_BATCH", 256), 30)
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.03 * 8 / 256)
    assert "0.03 is for a batch of 256; for 8 it is 0.0009375" in caplog.text
    cfg = load_config("own_images.yaml", *batch, "SOLVER.LR_REFERENCE_BATCH", 256)
    pairs = recipe_pairs(cfg, 30)  # to be scaled once
    assert pairs[pairs.index("SOLVER.BASE_LR") + 1] == pytest.approx(0.03)


def test_fused_and_plain_sgd_make_the_same_steps(scenes, tmp_path):
    models = []
    for name in ("fused", "plain"):
        trainer = make_trainer(scenes, tmp_path / name, 1)
        if name == "plain":
            make_plain_sgd(trainer.optimizer)
        trainer.train()
        models.append(trainer.model.state_dict())
    for name, tensor in models[1].items():
        assert torch.allclose(models[0][name], tensor, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("augmentation", ["fast", "device"])
def test_an_accumulated_run_resumes_exactly_in_every_augmentation(scenes, tmp_path, augmentation):
    settings = ["INPUT.DETCO.AUGMENTATION", augmentation, "SOLVER.ACCUMULATION_STEPS", 2]

    def make(name, iterations):
        return make_trainer(scenes, tmp_path / name, iterations, *settings)

    _, second = straight_and_resumed(make, 4, stop=2)
    assert second.model.queue.num_enqueued == 16  # four batches of four, not eight


def test_pretraining_reads_tar_shards_and_resumes_exactly_with_other_workers(scenes, tmp_path):
    files = sorted(Path(scenes, "train").rglob("*.*g"))
    for i in range(4):
        content = {file.name: file.read_bytes() for file in files[i::4]}
        write_tar(tmp_path / f"part-{i:03d}.tar", content)

    def make(name, iterations):
        shards = ("DATASETS.TRAIN", (f"{tmp_path}/part-{{000..003}}.tar",))
        workers = ("DATALOADER.NUM_WORKERS", 0 if name == "straight" else 2)
        return make_trainer(scenes, tmp_path / name, iterations, *workers, *shards)

    straight, _ = straight_and_resumed(make, 5, stop=3)
    assert len(straight.images) == len(files)


def test_pretraining_can_start_from_a_backbone(scenes, tmp_path):
    source = make_trainer(scenes, tmp_path, 1, "SEED", 8).model.query_encoder.backbone
    state = {f"module.backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "backbone.pth")
    trainer = make_trainer(scenes, tmp_path, 1, "MODEL.WEIGHTS", f"{tmp_path}/backbone.pth")
    trainer.resume_or_load(resume=False)
    for encoder in (trainer.model.query_encoder, trainer.model.key_encoder):
        found = encoder.backbone.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in source.state_dict().items())


def test_a_run_that_goes_on_in_another_shape_says_so(scenes, tmp_path, caplog):
    trainer = make_trainer(scenes, tmp_path, 2)
    state = trainer.state_dict()
    state["shape"].update({"processes": 8, "DATALOADER.NUM_WORKERS": 4})  # once kept for tar shards
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict(state)
    assert "{'processes': (8, 1), 'DATALOADER.NUM_WORKERS': (4, None)}" in caplog.text


def test_momenta_of_other_parameters_are_refused(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, 1)
    trainer.train()
    state = trainer.state_dict()
    slots = state["_trainer"]["optimizer"]["state"]
    slots[0], slots[len(slots) - 1] = slots[len(slots) - 1], slots[0]
    with pytest.raises(ValueError, match="in another order.*--overwrite"):
        trainer.load_state_dict(state)
