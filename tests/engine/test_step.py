"""One step on a GPU that is not there: torch's fake tensors have a device, and no numbers.

They refuse to mix devices. The backward pass, whose engine asks for a driver, runs on the CPU.
"""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch._subclasses import fake_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detco_d2.data.datasets import list_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import StreamDataset, collate_views
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.step import PretrainStep

from ..conftest import R18, make_batch, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
K = 20011  # a prime, so that it shows in a size


class FakeGPU(fake_tensor.FakeTensorMode):
    """Makes copies of real tensors on the GPU."""

    def from_tensor(self, tensor, **options):
        with self:
            return super().from_tensor(tensor, **options).to(GPU)


class Watch(TorchDispatchMode):
    """Notes updates and what makes the host wait for a device, in order; and the shapes there.

    The host waits for a number, for a shape that follows from numbers, and for a copy between
    devices that is not `non_blocking`.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.events, self.shapes = device, [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves([args, kwargs]) if torch.is_tensor(leaf)]
        if name == "_fused_sgd_":  # has no fake
            assert {tensor.device for tensor in inputs} == {self.device}
            return self.events.append("update")
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if torch.is_tensor(leaf)]
        devices = {tensor.device for tensor in inputs + outputs}
        if self.device in devices:
            self.shapes |= {tuple(tensor.shape) for tensor in outputs}
            is_free = any(word is True for word in [*args, (kwargs or {}).get("non_blocking")])
            is_copy = name in ("_to_copy", "copy_") and len(devices) > 1 and not is_free
            is_mask = name.startswith("index") and any(t.dtype == torch.bool for t in inputs)
            if name in READS or is_mask or is_copy:
                self.events.append(name)
        return result


@pytest.fixture(scope="module")
def model():
    cfg = tiny_config(*R18, "MODEL.DETCO.QUEUE_LENGTH", K)
    return PretrainTrainer.build_model(cfg).train()


@pytest.fixture
def watch(monkeypatch):
    """Of the GPU, of which every number that is read is 0."""
    watch = Watch(GPU)

    def tolist(tensor):
        if tensor.constant is not None:
            return tensor.constant.tolist()
        watch.events.append(f"transfer from {tensor.device}")
        return np.zeros(tensor.shape).tolist()

    monkeypatch.setattr(fake_tensor.FakeTensor, "tolist", tolist)
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 1000)  # what the CPU may read
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield watch
    torch.set_autocast_enabled("cuda", False)


@pytest.fixture
def two_processes(monkeypatch):
    order = lambda n, generator: torch.tensor([*range(0, n, 2), *range(1, n, 2)])  # noqa: E731
    monkeypatch.setattr(torch, "randperm", order)  # a constant
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


def run_step(watch, model, monkeypatch, augmentation="fast", parts=1, closely=False, images=()):
    cfg = tiny_config("INPUT.DETCO.AUGMENTATION", augmentation)
    mapper = DetCoDatasetMapper(cfg) if images else None
    stream = StreamDataset(images, mapper, seed=0)
    batch = collate_views([stream[i] for i in range(4)]) if images else make_batch()
    mode = contextlib.nullcontext()
    if watch.device == GPU:
        mode = FakeGPU()
        with fake_tensor.FakeCopyMode(mode):
            model = copy.deepcopy(model)

        def backward(loss):
            assert loss.device == GPU
            for parameter in model.query_encoder.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
    optimizer = PretrainTrainer.build_optimizer(cfg, model)
    model.monitor.closely = closely
    with mode:
        for name, view in batch.items():
            if torch.is_tensor(view):
                batch[name] = torch.tensor(view.tolist(), dtype=view.dtype)
        step = PretrainStep(model, itertools.repeat(batch), optimizer, mapper, parts=parts)
        step.iter = 0
        with watch, EventStorage():
            step.run_step()


STEP = ["transfer from cuda:0", "update", "transfer from cuda:0"]


@pytest.mark.parametrize(("augmentation", "parts"), [("fast", 1), ("device", 2)])
def test_a_step_waits_for_the_gpu_once_before_the_update_and_once_after_it(
    watch, model, monkeypatch, scenes, augmentation, parts
):
    images = list_images(f"{scenes}/train")
    run_step(watch, model, monkeypatch, augmentation, parts, images=images)
    assert watch.events == STEP


def test_so_does_a_step_of_two_processes(watch, model, monkeypatch, two_processes):
    run_step(watch, model, monkeypatch)
    assert watch.events == STEP


def test_the_backward_pass_reads_nothing(model, monkeypatch):
    watch = Watch(CPU)
    run_step(watch, model, monkeypatch)
    assert watch.events == ["update"]


def test_nothing_of_the_size_of_batch_times_queue_is_made(watch, model, monkeypatch):
    run_step(watch, model, monkeypatch, closely=True)
    assert watch.events == STEP
    of_all_keys = {shape for shape in watch.shapes if torch.Size(shape).numel() % K == 0}
    assert of_all_keys - {(0,)} == {(4, K, 16), (8, K, 16)}  # the queues
