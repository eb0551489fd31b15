"""Detectron2's own loop and its Python configs take what this package makes."""

import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks
from detectron2.modeling import build_model

from detco_d2.data.datasets import load_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import build_pretrain_loader, pack_images
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone
from detco_d2.weights.frozen import build_resnet
from detco_d2.weights.input_spec import TORCHVISION_SPEC

from .conftest import ROOT, tiny_config


def test_detectron2s_own_loop_trains_it_and_its_backbone_goes_on(scenes, tmp_path):
    """With the hook that makes a step begin and end; the checkpoint is one like any other."""
    torch.manual_seed(0)
    cfg = tiny_config()
    model = build_model(cfg).train()
    images = pack_images(load_images([os.path.join(scenes, "train")]))
    sizes = dict(total_batch_size=4, num_workers=0, seed=0)
    loader = build_pretrain_loader(images, DetCoDatasetMapper(cfg), **sizes)
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.query_encoder.parameters(), 0.03))
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    steps = hooks.CallbackHook(
        before_step=lambda _: model.begin_step(), after_step=lambda _: model.finish_step()
    )
    trainer.register_hooks([steps, hooks.PeriodicCheckpointer(checkpointer, period=2)])
    before = model.query_encoder.backbone.res5[2].conv2.weight.detach().clone()
    average = model.key_encoder.backbone.res5[2].conv2.weight.detach().clone()
    trainer.train(0, 2)
    assert trainer.storage.history("loss_gg_res5").latest() > 0
    assert trainer.storage.history("top1/gg_res5").latest() >= 0
    after = model.query_encoder.backbone.res5[2].conv2.weight
    assert not torch.equal(after, before)
    assert not torch.equal(model.key_encoder.backbone.res5[2].conv2.weight, average)
    assert int(model.queue.num_enqueued) == 8
    backbone = read_backbone(str(tmp_path / "model_final.pth"))
    assert backbone.source.startswith("DetCo pretraining checkpoint")
    assert torch.equal(backbone.tensors["res5.2.conv2.weight"], after)


def test_detectron2s_own_mask_rcnn_starts_from_a_converted_file(tmp_path):
    try:
        cfg = LazyConfig.load(os.path.join(ROOT, "configs", "lazy", "mask_rcnn_fpn.py"))
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
