"""The LazyConfigs say what the YAML says, and Detectron2's own loop trains them."""

import dataclasses
import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone
from detco_d2.weights.frozen import build_resnet
from detco_d2.weights.input_spec import TORCHVISION_SPEC

from .conftest import ROOT, load_config


def lazy(name):
    cfg = LazyConfig.load(os.path.join(ROOT, "configs", "lazy", name))
    if "queue_length" in cfg.model:
        cfg.model.queue_length = 16
    return cfg


def test_the_model_and_its_settings_are_those_of_the_yaml():
    cfg = load_config("detco.yaml", "MODEL.DETCO.QUEUE_LENGTH", 16)
    expected, found = build_model(cfg), instantiate(lazy("detco.py").model)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (expected, found)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 600
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (expected, found)]
    assert trained[0] == trained[1]
    for name in ("momentum", "temperature", "shuffle_bn", "views", "queue_names", "stage_weights"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("pixel_mean", "pixel_std"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_views_optimiser_and_schedule_are_those_of_the_yaml():
    cfg, node = load_config("detco.yaml"), lazy("detco.py")
    expected, found = DetCoDatasetMapper(cfg), instantiate(node.dataloader.train.mapper)
    assert list(found.settings) == list(expected.settings)
    for view, settings in expected.settings.items():
        there = dataclasses.asdict(found.settings[view])
        for key, value in dataclasses.asdict(settings).items():
            assert there[key] == (list(value) if isinstance(value, tuple) else value), (view, key)
    for name in ("patch_size", "image_format", "augmentation", "min_side", "max_pixels"):
        assert getattr(found, name) == getattr(expected, name), name
    assert node.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert list(node.dataloader.train.images.images.names) == list(cfg.DATASETS.TRAIN)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    node.optimizer.params.model = model
    groups = [
        sorted(
            (p.numel(), g["lr"], g["momentum"], g["weight_decay"])
            for g in o.param_groups
            for p in g["params"]
        )
        for o in (instantiate(node.optimizer), build_optimizer(cfg, model))
    ]
    assert groups[0] == groups[1]
    multiplier = instantiate(node.lr_multiplier)
    assert [multiplier(x) for x in (0.0, 0.5)] == pytest.approx([1.0, 0.5])
    assert node.train.max_iter == cfg.SOLVER.MAX_ITER


def test_detectron2s_own_loop_trains_it_and_its_backbone_goes_on(scenes, tmp_path):
    """The steps of Detectron2's tools/lazyconfig_train_net.py."""
    torch.manual_seed(0)
    cfg = lazy("detco.py")
    encoder, loader = cfg.model.query_encoder, cfg.dataloader.train
    for heads in (encoder.global_heads, encoder.local_heads):
        for stage in ("res2", "res3", "res4", "res5"):
            heads[stage].hidden_dim = 8
    loader.images.images.names = [os.path.join(scenes, "train")]
    loader.update(total_batch_size=4, num_workers=0, pin_memory=False)
    loader.mapper.global_settings.size, loader.mapper.local_settings.size = 48, 63
    loader.mapper.patch_size = 16
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(loader), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.LRScheduler(
                optimizer=trainer.optimizer, scheduler=instantiate(cfg.lr_multiplier)
            ),
            hooks.PeriodicCheckpointer(checkpointer, period=2),
        ]
    )
    before = model.query_encoder.backbone.res5[2].conv2.weight.detach().clone()
    trainer.train(0, 2)
    assert trainer.storage.history("loss_gg_res5").latest() > 0
    after = model.query_encoder.backbone.res5[2].conv2.weight
    assert not torch.equal(after, before)
    assert int(model.queue.num_enqueued) == 8
    backbone = read_backbone(str(tmp_path / "model_final.pth"))
    assert backbone.source.startswith("DetCo pretraining checkpoint")
    assert torch.equal(backbone.tensors["res5.2.conv2.weight"], after)


def test_detectron2s_own_mask_rcnn_starts_from_a_converted_file(tmp_path):
    try:
        cfg = lazy("mask_rcnn_fpn.py")
    except RuntimeError:
        pytest.skip("this Detectron2 brings no Python configs of its own")
    torch.manual_seed(0)
    weights = build_resnet({"DEPTH": 50}, "BN", ["res5"]).state_dict()
    weights = {n: torch.rand(t.shape) for n, t in weights.items() if "num_batches" not in n}
    path = str(tmp_path / "mine_R_50.pth")
    save_backbone(path, weights, TORCHVISION_SPEC)
    for node in (cfg.model.backbone.bottom_up.stem, cfg.model.backbone.bottom_up.stages):
        assert node.norm == "SyncBN"
        node.norm = "BN"
    cfg.model.backbone.norm = "BN"
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(path)
    found = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert model.input_format == "RGB" and cfg.dataloader.test.mapper.image_format == "RGB"
    assert not model.backbone.bottom_up.res3[0].conv1.stride == (2, 2)
    assert all(p.requires_grad for p in model.backbone.parameters())
