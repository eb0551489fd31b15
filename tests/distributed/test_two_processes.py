"""Two gloo processes: equal queues, and the losses of one process on the joined batch."""

import sys

import pytest
import torch
from detectron2.modeling import build_model

from .. import warm
from ..conftest import make_batch, tiny_config
from .worker import NORM_FREE, filled_queue, run


@pytest.fixture(scope="module", params=[False, True], ids=["buffers_kept", "buffers_broadcast"])
def ranks(request, scenes, tmp_path_factory):
    """What both processes ended with, for each setting of DDP's broadcast_buffers."""
    output = str(tmp_path_factory.mktemp("ranks"))
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", "2", "-m", "tests.distributed.worker", output]
    done = warm.run([*words, str(request.param), f"{scenes}/train"])
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{output}/rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_queues_and_encoders_are_bit_equal_on_both_processes(ranks):
    for name in ("queue", "exact_queue", "query", "key"):
        assert torch.equal(ranks[0][name], ranks[1][name]), name
    assert ranks[0]["count"] == ranks[1]["count"] == 16  # the keys of both, four times


def test_losses_and_queues_are_those_of_one_process_on_the_joined_batch(ranks):
    """With group norm a batch may be cut anywhere: keys must come back un-shuffled to their own."""
    torch.manual_seed(0)
    model = build_model(tiny_config(*NORM_FREE)).double().train()
    expected = run(model, 3, slice(0, 4))
    for step in range(3):
        for name, value in expected[step].items():
            mean = (ranks[0]["losses"][step][name] + ranks[1]["losses"][step][name]) / 2
            assert mean == pytest.approx(value, rel=1e-6), (step, name)
    assert torch.allclose(ranks[0]["exact_queue"], model.queue.features, rtol=1e-6, atol=1e-9)


def test_the_shuffle_deals_rows_anew_in_each_step_and_can_be_undone(ranks):
    everything = torch.cat([torch.arange(8).view(4, 2) + 10 * rank for rank in range(2)])
    order = ranks[0]["order"]
    assert sorted(order.tolist()) == list(range(8))
    assert {int(i) // 4 for i in order[:4]} == {0, 1}  # or no row would have to travel
    assert torch.equal(torch.cat([rank["dealt"] for rank in ranks]), everything[order])
    for rank in ranks:
        assert torch.equal(rank["undone"], everything)
        assert not torch.equal(rank["next_order"], order)


def test_accumulated_parts_on_two_processes_are_one_batch_on_one(ranks):
    torch.manual_seed(0)
    model = build_model(tiny_config(*NORM_FREE)).double().train()
    model.begin_step()
    sum(model(make_batch(4)).values()).backward()
    model.finish_step()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    for rank in ranks:
        assert torch.allclose(rank["accumulated"], gradient, rtol=1e-6, atol=1e-9)
        same_keys = torch.tensor([0, 2, 1, 3])  # the first parts of both come before the second
        kept = model.queue.features[:, same_keys]
        assert torch.allclose(rank["accumulated_queue"][:, :4], kept, rtol=1e-6, atol=1e-9)


def test_filled_queues_are_those_of_one_process(ranks, scenes, tmp_path):
    assert torch.equal(ranks[0]["filled_queue"], ranks[1]["filled_queue"])
    alone = filled_queue(str(tmp_path), f"{scenes}/train").unflatten(1, (3, 4))
    by_rank = alone[:, :, [0, 2, 1, 3]].flatten(1, 2)  # each batch is dealt out in turn
    assert torch.allclose(ranks[0]["filled_queue"], by_rank, rtol=1e-4, atol=1e-5)


def test_every_process_undoes_the_step_that_went_wrong_on_one(ranks):
    for result in (rank["poisoned"] for rank in ranks):
        by_keys, by_gradients, by_the_step_after = result["changed"]
        assert by_keys == by_gradients == [] and len(by_the_step_after) > 100
        assert result["undone"] == 2 and result["finite"]
        assert result["finite_losses"] == [True, False]  # of the processes, in the last report
    assert torch.equal(*(rank["poisoned"]["queue"] for rank in ranks))
