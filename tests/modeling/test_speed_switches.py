"""What makes a step fast or small changes no number."""

import pytest
import torch
from detectron2.modeling import build_model

from detco_d2.modeling.losses import fused_info_nce, info_nce

from .. import conftest
from ..conftest import R18, load_config, make_batch

PLAIN = [
    *["MODEL.DETCO.FUSED_LOSS", False, "MODEL.DETCO.FUSED_EMA", False],
    *["MODEL.DETCO.CHANNELS_LAST", False],
]


def tiny_config(*settings):
    """A deeper network would amplify what is rounded."""
    return conftest.tiny_config(*R18, *settings)


def train(cfg, steps=4, parts=1, dtype=None):
    """Losses, parameters, buffers and gradients of the last step, after so many steps of SGD."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if dtype:
        model.to(dtype)
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = make_batch(seed=step)
        optimizer.zero_grad()
        total = 0.0
        model.begin_step()
        for i in range(parts):
            part = {name: view.chunk(parts)[i] for name, view in batch.items()}
            terms = model(part, is_whole_step=parts == 1)
            (sum(terms.values()) / parts).backward()
            total += sum(terms.values()).item() / parts
        losses.append(total)
        gradients = {n: p.grad.clone() for n, p in model.query_encoder.named_parameters()}
        optimizer.step()
        if parts > 1:
            model.finish_step()
    if parts == 1:  # a whole step begins with the average that an accumulated one ends with
        model._update_momentum_encoder()
    return losses, dict(model.state_dict()), gradients


def assert_close(ours, theirs, rtol, atol):
    assert ours[0] == pytest.approx(theirs[0], rel=rtol)
    for i in (1, 2):
        assert ours[i].keys() == theirs[i].keys()
        for name in ours[i]:
            assert torch.allclose(ours[i][name], theirs[i][name], rtol=rtol, atol=atol), name


@pytest.fixture(scope="module")
def fast():
    return train(tiny_config(), dtype=torch.float64)


@pytest.fixture(scope="module")
def whole():
    return train(tiny_config("MODEL.RESNETS.NORM", "GN"), dtype=torch.float64)


@pytest.mark.parametrize("settings", [PLAIN[:2], PLAIN[2:4], PLAIN[4:], PLAIN])
def test_every_switch_alone_and_all_together_give_the_plain_numbers_in_float64(fast, settings):
    plain = train(tiny_config(*settings), dtype=torch.float64)
    assert_close(fast, plain, rtol=1e-9, atol=1e-12)


def test_all_switches_together_give_the_plain_numbers_in_float32():
    """Losses over four steps within 1e-5, the first step's state and gradients within 1e-4.

    Later gradients part, as those of two runs do that differ in one rounding: a ReLU flips.
    """
    assert train(tiny_config())[0] == pytest.approx(train(tiny_config(*PLAIN))[0], rel=1e-5)
    ours, theirs = train(tiny_config(), steps=1), train(tiny_config(*PLAIN), steps=1)
    for i in (1, 2):
        for name, tensor in theirs[i].items():
            distance = (ours[i][name] - tensor).double().norm()
            assert distance <= 1e-4 * tensor.double().norm(), name


def test_bfloat16_is_near_float32():
    """Losses within 5 %, and gradients that point the same way (cosine above 0.9)."""
    # 32-pixel patches: torch's bfloat16 convolutions go wrong on the CPU on maps of 1x1 pixels
    cfg = tiny_config("INPUT.DETCO.LOCAL_SIZE", 96, "INPUT.DETCO.PATCH_SIZE", 32)
    generator = torch.Generator().manual_seed(0)
    shapes = {"global": (8, 3, 64, 64), "local": (8, 9, 3, 32, 32)}
    batch = {
        f"{view}_{side}": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        for view, shape in shapes.items()
        for side in ("query", "key")
    }
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


def test_the_plain_switches_are_really_other_code(monkeypatch):
    """Or the proofs above would compare a path with itself."""
    for name in ("_fused_losses", "_plain_losses"):
        model = build_model(tiny_config(*(PLAIN if name == "_plain_losses" else []))).train()
        calls, method = [], getattr(model, name)
        setattr(
            model, name, lambda *args, calls=calls, method=method: calls.append(1) or method(*args)
        )
        model(make_batch())
        assert calls == [1]
    weight = model.query_encoder.backbone.res2[0].conv1.weight
    assert not weight.is_contiguous(memory_format=torch.channels_last)
    fast = build_model(tiny_config()).query_encoder.backbone.res2[0].conv1.weight
    assert fast.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("negatives", [1, 63, 8192, 8193, 20000])
@pytest.mark.parametrize("temperature", [0.025, 0.07, 0.2])
def test_fused_loss_and_gradient_are_those_of_concatenated_logits(negatives, temperature):
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    query = unit(torch.randn(2, 5, 16, dtype=torch.float64), dim=2).requires_grad_()
    key, queue = (
        unit(torch.randn(2, size, 16, dtype=torch.float64), dim=2) for size in (5, negatives)
    )
    weights = torch.rand(2, dtype=torch.float64)
    loss, nearest = fused_info_nce(query, key, queue, temperature)
    (gradient,) = torch.autograd.grad((loss.mean(dim=1) * weights).sum(), query)
    for i in range(2):
        expected, top1 = info_nce(query[i], key[i], queue[i], temperature)
        (expected_gradient,) = torch.autograd.grad(expected * weights[i], query)
        assert loss[i].mean().item() == pytest.approx(expected.item(), rel=1e-12)
        assert nearest[i].double().mean() == top1
        assert torch.allclose(gradient[i], expected_gradient[i], rtol=1e-9, atol=1e-12)


def test_a_low_temperature_takes_the_plain_loss():
    """1 / t = 100: e^(2 / t) is beyond float32."""
    cfg = tiny_config("MODEL.DETCO.TEMPERATURE", 0.01)
    assert not build_model(cfg).fused_loss and build_model(tiny_config()).fused_loss
    assert all(torch.isfinite(loss) for loss in build_model(cfg).train()(make_batch()).values())


def test_the_loss_keeps_nothing_of_the_size_of_batch_times_queue():
    saved = []
    query = torch.nn.functional.normalize(torch.randn(1, 8, 16), dim=2).requires_grad_()
    queue = torch.nn.functional.normalize(torch.randn(1, 4096, 16), dim=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused_info_nce(query, query.detach(), queue, 0.2)
    assert saved and max(tensor.numel() for tensor in saved) == 8 * 16


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_one_batch_to_the_queue_the_average_and_the_gradient(whole, parts):
    """Group norm, since batch norm rightly sees the parts."""
    cfg = tiny_config("MODEL.RESNETS.NORM", "GN")
    accumulated = train(cfg, parts=parts, dtype=torch.float64)
    assert_close(accumulated, whole, rtol=1e-9, atol=1e-12)
    assert accumulated[1]["queue.num_enqueued"] == 16


def test_a_step_that_broke_off_leaves_no_keys_to_the_next():
    torch.manual_seed(0)
    model = build_model(tiny_config()).train()
    model.begin_step()
    model(make_batch(seed=1), is_whole_step=False)  # and then an error
    model.begin_step()
    model(make_batch(seed=2), is_whole_step=False)
    model.finish_step()
    assert model.queue.num_enqueued == 4


def test_checkpointed_stages_change_neither_numbers_nor_running_statistics(fast):
    stages = ["MODEL.DETCO.CHECKPOINT_STAGES", ["stem", "res2", "res4"]]
    small = train(tiny_config(*stages), dtype=torch.float64)
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


def test_the_defaults_are_fast_and_full_precision():
    cfg = load_config("detco.yaml")
    node = cfg.MODEL.DETCO
    assert node.CHANNELS_LAST and node.FUSED_LOSS and node.FUSED_EMA and cfg.SOLVER.FUSED_SGD
    assert not cfg.SOLVER.AMP.ENABLED and cfg.INPUT.DETCO.AUGMENTATION == "exact"
    assert cfg.SOLVER.ACCUMULATION_STEPS == 1 and cfg.SOLVER.LR_REFERENCE_BATCH == 0
