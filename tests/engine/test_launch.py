"""Starting processes."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
import torch
from detectron2.utils import comm

from detco_d2.engine.launch import launch
from detco_d2.engine.machine import adapt_to_machine

from .. import warm
from ..conftest import load_config


def flags(num_gpus, num_machines=1):
    machines = dict(num_machines=num_machines, machine_rank=0, dist_url="auto")
    return argparse.Namespace(num_gpus=num_gpus, **machines)


def test_more_gpus_than_there_are_is_an_error_that_says_how_many(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"8 GPU\(s\) asked for on this machine, which has 2"):
        launch(print, flags(8))


def test_zero_gpus_run_in_this_process():
    assert launch(lambda args: (args.num_gpus, os.getpid()), flags(0)) == (0, os.getpid())


def test_a_script_on_one_gpu_keeps_its_signals(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    default = signal.getsignal(signal.SIGTERM)
    assert launch(lambda args: signal.getsignal(signal.SIGTERM), flags(1)) == default


def test_sync_bn_becomes_bn_for_one_cpu_process_and_naive_for_several(monkeypatch):
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml")
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE) == ("BN", "BN", "cpu")
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "SyncBN"
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    adapt_to_machine(cfg, num_gpus=0)
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == "naiveSyncBN"
    cfg.MODEL.RESNETS.NORM = "SyncBN"
    adapt_to_machine(cfg, num_gpus=1)
    assert cfg.MODEL.RESNETS.NORM == "SyncBN"


@pytest.mark.parametrize("script", ["pretrain_net.py", "train_net.py"])
def test_a_missing_config_file_is_said(script):
    done = warm.run([sys.executable, script, "--config-file", "none.yaml"])
    assert done.returncode == 1
    assert "--config-file 'none.yaml' is no file" in done.stderr


@pytest.mark.parametrize(
    "script, unused",
    [
        ("pretrain_net", {"probes", "engine.knn", "engine.writers", "modeling.fcn_head"}),
        ("train_net", {"modeling.detco", "data.mapper", "engine.pretrain", "engine.step"}),
    ],
)
def test_a_script_does_not_load_what_only_other_configs_use(script, unused):
    code = f"import sys, {script}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], cwd=warm.ROOT)
    assert not {f"detco_d2.{name}" for name in unused} & set(loaded.decode().split())
