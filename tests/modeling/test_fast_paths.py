"""What makes a step fast or small changes no number."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from detco_d2.modeling.losses import info_nce

from .. import conftest, references
from ..conftest import R18, make_batch


def tiny_config(*settings):
    """A deeper network would amplify what is rounded."""
    return conftest.tiny_config(*R18, *settings)


def train(*settings, steps=4, parts=1, dtype=torch.float64, plain=False):
    """Losses, parameters, buffers and gradients of the last step, after so many steps of SGD."""
    torch.manual_seed(0)
    model = build_model(tiny_config(*settings)).train().to(dtype)
    if plain:
        references.make_plain(model)
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = make_batch(seed=step)
        optimizer.zero_grad()
        total = 0.0
        model.begin_step()
        for i in range(parts):
            terms = model({name: view.chunk(parts)[i] for name, view in batch.items()})
            (sum(terms.values()) / parts).backward()
            total += sum(terms.values()).item() / parts
        losses.append(total)
        gradients = {n: p.grad.clone() for n, p in model.query_encoder.named_parameters()}
        optimizer.step()
        model.finish_step()
    return losses, dict(model.state_dict()), gradients


def assert_close(ours, theirs, rtol, atol):
    assert ours[0] == pytest.approx(theirs[0], rel=rtol)
    for i in (1, 2):
        assert ours[i].keys() == theirs[i].keys()
        for name in ours[i]:
            assert torch.allclose(ours[i][name], theirs[i][name], rtol=rtol, atol=atol), name


@pytest.fixture(scope="module")
def fast():
    return train()


@pytest.fixture(scope="module")
def whole():
    return train("MODEL.RESNETS.NORM", "GN")


def test_the_fast_code_gives_the_plain_numbers_in_float64(fast):
    assert_close(fast, train(plain=True), rtol=1e-9, atol=1e-12)


def test_the_fast_code_gives_the_plain_numbers_in_float32():
    """Losses over four steps within 1e-5, the first step's state and gradients within 1e-4.

    Later gradients part, as those of two runs do that differ in one rounding: a ReLU flips.
    """
    fast, plain = (train(dtype=torch.float32, plain=plain) for plain in (False, True))
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)
    ours, theirs = (train(steps=1, dtype=torch.float32, plain=plain) for plain in (False, True))
    for i in (1, 2):
        for name, tensor in theirs[i].items():
            distance = (ours[i][name] - tensor).double().norm()
            assert distance <= 1e-4 * tensor.double().norm(), name


def test_bfloat16_is_near_float32():
    """Losses within 5 %, and gradients that point the same way (cosine above 0.9)."""
    # 32-pixel patches: torch's bfloat16 convolutions go wrong on the CPU on maps of 1x1 pixels
    cfg = tiny_config("INPUT.DETCO.LOCAL_SIZE", 96, "INPUT.DETCO.PATCH_SIZE", 32)
    batch = make_batch(8, size=64, patch=32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model(batch)
        sum(losses.values()).backward()
        grad = torch.cat([p.grad.flatten() for p in model.query_encoder.backbone.parameters()])
        results.append(({name: loss.item() for name, loss in losses.items()}, grad))
    (exact, exact_grad), (rounded, rounded_grad) = results
    assert rounded == pytest.approx(exact, rel=0.05)
    assert torch.cosine_similarity(exact_grad, rounded_grad, dim=0) > 0.9


def test_the_plain_code_is_really_other_code():
    """Or the proofs above would compare a path with itself."""
    fast = build_model(tiny_config())
    plain = references.make_plain(build_model(tiny_config()))
    for name in ("contrast", "update_momentum_encoder"):
        assert getattr(type(fast), name) is not getattr(type(plain), name)
    weights = [m.query_encoder.backbone.res2[0].conv1.weight for m in (fast, plain)]
    is_last = [w.is_contiguous(memory_format=torch.channels_last) for w in weights]
    assert is_last == [True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.2, 5.0])
@pytest.mark.parametrize("negatives", [1, 63, 8193, 20000])
def test_loss_and_gradient_are_those_of_concatenated_logits(negatives, temperature, dtype):
    """At any temperature, also where e^(1 / t) is beyond float32; measured in float64."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    draws = (torch.randn(3, size, 16, dtype=dtype) for size in (5, 5, negatives))
    query, key, queue = (unit(draw, dim=2) for draw in draws)
    key[1] = query[1]  # the largest logit that there can be comes first
    queue[2, -1] = query[2, 0]  # and last
    weights = torch.rand(3, dtype=dtype)
    query.requires_grad_()
    loss, nearest = info_nce(query, key, queue, temperature)
    (gradient,) = torch.autograd.grad((loss.mean(dim=1) * weights).sum(), query)
    exact = query.detach().double().requires_grad_()
    # float32 rounds a logit of 1 / t to 2^-24 / t
    error = 1e-11 if dtype == torch.float64 else 1e-5 + 2e-7 / temperature
    for i in range(3):
        keys = key[i].double(), queue[i].double()
        expected, top1 = references.info_nce(exact[i], *keys, temperature)
        (slope,) = torch.autograd.grad(expected * weights[i].double(), exact)
        assert loss[i].mean().item() == pytest.approx(expected.item(), rel=error, abs=error)
        assert nearest[i].double().mean() == top1
        largest = max(slope[i].abs().max().item(), 1 / temperature)
        assert (gradient[i] - slope[i]).abs().max().item() <= error * largest


@pytest.mark.parametrize("logit", [-1.0, 1.0])
def test_logits_at_either_end_are_neither_infinite_nor_zero(logit):
    """All keys opposite to the query, or all equal to it: chance, in float32."""
    query = torch.nn.functional.normalize(torch.ones(1, 2, 16), dim=2)
    keys = (logit * query[:, :1]).expand(1, 9000, 16)
    loss, _ = info_nce(query, keys[:, :2], keys, 0.001)
    assert loss.flatten().tolist() == pytest.approx(2 * [math.log(9001)], abs=2e-3)


def test_the_loss_keeps_nothing_of_the_size_of_batch_times_queue():
    saved = []
    query = torch.nn.functional.normalize(torch.randn(1, 8, 16), dim=2).requires_grad_()
    queue = torch.nn.functional.normalize(torch.randn(1, 4096, 16), dim=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        info_nce(query, query.detach(), queue, 0.2)
    assert saved and max(tensor.numel() for tensor in saved) == 8 * 16


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_one_batch_to_the_queue_the_average_and_the_gradient(whole, parts):
    """Group norm, since batch norm rightly sees the parts."""
    accumulated = train("MODEL.RESNETS.NORM", "GN", parts=parts)
    assert_close(accumulated, whole, rtol=1e-9, atol=1e-12)
    assert accumulated[1]["queue.num_enqueued"] == 16


def test_checkpointed_stages_change_neither_numbers_nor_running_statistics(fast):
    small = train("MODEL.DETCO.CHECKPOINT_STAGES", ["stem", "res2", "res4"])
    assert_close(small, fast, rtol=1e-9, atol=1e-12)
    assert small[1]["query_encoder.backbone.stem.conv1.norm.num_batches_tracked"] == 8  # 2 a step


def test_checkpointed_stages_keep_no_activation_of_their_inside():
    def saved_numbers(*settings):
        sizes = []
        model = build_model(tiny_config(*settings)).train()
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(make_batch())
        return sum(sizes)

    stages = ["stem", "res2", "res3", "res4", "res5"]
    assert saved_numbers("MODEL.DETCO.CHECKPOINT_STAGES", stages) < 0.5 * saved_numbers()


def test_an_unknown_stage_to_checkpoint_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"CHECKPOINT_STAGES names \['res6'\].*'res5'"):
        build_model(tiny_config("MODEL.DETCO.CHECKPOINT_STAGES", ["res6"]))
