"""The meta-architecture: what a step computes, changes, and leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.utils.events import EventStorage

from ..conftest import make_batch, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny_config()).train()


def test_restricted_to_res5_and_global_it_is_moco_v2():
    """MoCo v2's loss, computed here on its own: einsum, concatenation, cross-entropy."""
    torch.manual_seed(0)
    model = build_model(tiny_config(file="moco_v2.yaml")).double().train()
    assert model.views == ["global_query", "global_key"]
    batch = make_batch()

    def embed(encoder, images):
        mean = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64).view(3, 1, 1)
        features = encoder.backbone((images - mean) / std)["res5"]
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        head = encoder.global_heads["res5"]
        hidden = (pooled @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
        out = hidden @ head.out.weight.T + head.out.bias
        return out / out.norm(dim=1, keepdim=True)

    q = embed(model.query_encoder, batch["global_query"])
    k = embed(model.key_encoder, batch["global_key"])
    negatives = torch.einsum("nc,kc->nk", q, model.queue.features[0])
    logits = torch.cat([torch.einsum("nc,nc->n", q, k)[:, None], negatives], 1)
    expected = (torch.logsumexp(logits / 0.2, 1) - logits[:, 0] / 0.2).mean()
    losses = model(batch)
    assert list(losses) == ["loss_gg_res5"]
    # the mean and std are float32 buffers that .double() widened, hence not 1e-12
    assert losses["loss_gg_res5"].item() == pytest.approx(expected.item(), rel=1e-6)


def step(model, batch, optimizer=None):
    """A whole training step; its losses."""
    model.begin_step()
    losses = model(batch)
    if optimizer:
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.finish_step()
    return losses


def test_momentum_encoder_starts_as_a_copy_and_follows_the_moving_average(model):
    """theta_k <- m theta_k + (1 - m) theta_q, heads included (MoCo eq. 2), m = 0.9 here."""
    pairs = list(zip(model.query_encoder.parameters(), model.key_encoder.parameters()))
    assert all(torch.equal(q, k) for q, k in pairs)
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), lr=0.1)
    for seed in range(3):
        before = [k.clone() for _, k in pairs]
        step(model, make_batch(seed=seed), optimizer)
        for (q, k), old in zip(pairs, before):
            assert torch.allclose(k, 0.9 * old + 0.1 * q.detach(), rtol=1e-5, atol=1e-7)
    assert not any(torch.equal(q, k) for q, k in pairs)


def test_batch_norm_statistics_are_each_encoders_own(model):
    batch = make_batch()
    batch["global_key"] = batch["global_key"] // 8  # a darker key side
    model(batch)
    query = model.query_encoder.backbone.stem.conv1.norm.running_mean
    key = model.key_encoder.backbone.stem.conv1.norm.running_mean
    assert not torch.allclose(query, key)


def test_gradients_reach_every_query_parameter_and_no_key_parameter(model):
    sum(model(make_batch()).values()).backward()
    assert [n for n, p in model.query_encoder.named_parameters() if p.grad is None] == []
    assert all(p.grad.abs().sum() > 0 for p in model.query_encoder.parameters() if p.dim() > 1)
    assert all(p.grad is None for p in model.key_encoder.parameters())
    assert not model.queue.features.requires_grad


def test_keys_enter_the_queues_after_the_losses(model):
    before = model.queue.features.clone()
    assert before.shape == (8, 10, 16) and len(set(model.queue_names)) == 8
    batch = make_batch()
    with torch.no_grad():
        views = [model.normalise(batch[name]) for name in ("global_key", "local_key")]
        keys = model.key_encoder(*views)
    step(model, batch)
    for i, name in enumerate(model.queue_names):
        assert torch.allclose(model.queue.features[i, :4], keys[name], atol=1e-6)
    assert torch.equal(model.queue.features[:, 4:], before[:, 4:])


@pytest.mark.parametrize(
    "families, stages, queues",
    [(["gg"], ["res3", "res5"], 2), (["gl"], ["res4"], 1), (["ll", "gl"], ["res5"], 2)],
)
def test_any_stages_and_families_can_be_chosen(families, stages, queues):
    settings = ["MODEL.DETCO.STAGES", stages, "MODEL.DETCO.STAGE_WEIGHTS", [1.0] * len(stages)]
    model = build_model(tiny_config("MODEL.DETCO.FAMILIES", families, *settings)).train()
    losses = model(make_batch())
    assert set(losses) == {f"loss_{f}_{s}" for f in families for s in stages}
    assert len(model.queue_names) == queues
    sum(losses.values()).backward()
    # DDP fails on a trainable parameter that gets no gradient
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_accuracy_and_spread_go_to_the_event_storage_not_to_the_losses(model):
    with EventStorage() as storage:
        losses = step(model, make_batch())
        seen = {name: value for name, (value, _) in storage.latest().items()}
    assert all(name.startswith("loss_") for name in losses)
    for family in ("gg", "gl", "ll"):
        weighted = losses[f"loss_{family}_res3"].item()
        assert 0.4 * seen[f"info_nce/{family}_res3"] == pytest.approx(weighted, rel=1e-5)
        assert 0 <= seen[f"top1/{family}_res3"] <= 1
    assert 0 < seen["spread/local_res5"] < 2 and 0 < seen["spread/global_res2"] < 2


def recorded(model, batches):
    """What a step over these parts puts into the storage: the values of each name."""
    with EventStorage() as storage:
        model.begin_step()
        for batch in batches:
            model(batch)
        assert not storage.histories()  # nothing yet: the step may be undone
        model.finish_step()
        return {name: h.values()[0][0] for name, h in storage.histories().items()}


def test_close_watching_adds_top5_alignment_and_uniformity_and_changes_nothing(model):
    other = copy.deepcopy(model)
    model.monitor.closely = True
    close, usual = recorded(model, [make_batch()]), recorded(other, [make_batch()])
    names = [f"{kind}/{f}" for kind in ("top5", "alignment") for f in ("gg", "ll", "gl")]
    names += ["uniformity/global", "uniformity/local"]
    assert close.keys() - usual.keys() == {f"{n}_res{i}" for n in names for i in (2, 3, 4, 5)}
    assert {name: close[name] for name in usual} == usual
    for family in ("gg", "gl", "ll"):
        assert close[f"top1/{family}_res4"] <= close[f"top5/{family}_res4"] <= 1
        assert 0 < close[f"alignment/{family}_res4"] < 4
    assert -4 < close["uniformity/global_res5"] < 0
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_each_term_is_watched_against_its_own_view_stage_and_queue(model):
    model.monitor.closely = True
    batch = make_batch()
    with torch.no_grad():
        views = {name: model.normalise(view) for name, view in batch.items()}
        queries = model.query_encoder(views["global_query"], views["local_query"])
        keys = model.key_encoder(views["global_key"], views["local_key"])
    seen = recorded(model, [batch])
    for family, query_view, key_view in (("gg", *2 * ["global"]), ("gl", "local", "global")):
        distance = (queries[query_view, "res3"] - keys[key_view, "res3"]).square().sum(1).mean()
        assert seen[f"alignment/{family}_res3"] == pytest.approx(distance.item(), rel=1e-4)


def test_what_is_recorded_is_the_mean_over_the_parts_of_a_step(model):
    model.monitor.closely = True
    batches = [make_batch(seed=seed) for seed in (1, 2)]
    alone = [recorded(copy.deepcopy(model), [batch]) for batch in batches]
    means = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    assert recorded(model, batches) == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_an_undone_step_records_nothing(model):
    with EventStorage() as storage:
        model.begin_step()
        model(make_batch())
        model.undo_step()
        assert not storage.histories()
    assert recorded(model, [make_batch()])  # and leaves nothing to the next


def test_outside_of_a_step_a_forward_gives_losses_and_leaves_queues_and_average_alone(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.query_encoder.parameters():  # or the average would stay as it is
            parameter.add_(0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with EventStorage() as storage:
        losses = [model(make_batch(seed=seed)) for seed in (1, 2)]
        assert not storage.histories()
    assert len(losses[0]) == 12
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed and all("running_" in name or "num_batches" in name for name in changed)
    step(model, make_batch(seed=3))  # which finds no keys of the others
    assert model.queue.num_enqueued == 4
    for method in (other.finish_step, other.undo_step):
        with pytest.raises(RuntimeError, match="after begin_step"):
            method()


def test_a_step_that_broke_off_leaves_no_keys_to_the_next(model):
    model.begin_step()
    model(make_batch(seed=1))  # and then an error
    step(model, make_batch(seed=2))
    assert model.queue.num_enqueued == 4


def test_inference_is_refused_with_the_way_out(model):
    with pytest.raises(RuntimeError, match="convert_weights"):
        model.eval()(make_batch())


@BACKBONE_REGISTRY.register()
class ToyBackbone(Backbone):
    """A backbone that is no ResNet: two convolutions, each a stage."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.first = torch.nn.Conv2d(input_shape.channels, 6, 3, stride=4)
        self.second = torch.nn.Conv2d(6, 10, 3, stride=2)

    def output_shape(self):
        return {"s1": ShapeSpec(channels=6, stride=4), "s2": ShapeSpec(channels=10, stride=8)}

    def forward(self, x):
        first = self.first(x)
        return {"s1": first, "s2": self.second(first)}


def test_any_registered_backbone_with_stage_outputs_can_be_pretrained():
    settings = ["MODEL.DETCO.STAGES", ["s1", "s2"], "MODEL.DETCO.STAGE_WEIGHTS", [0.5, 1.0]]
    model = build_model(tiny_config("MODEL.BACKBONE.NAME", "ToyBackbone", *settings)).train()
    losses = model(make_batch())
    assert set(losses) == {f"loss_{f}_{s}" for f in ("gg", "gl", "ll") for s in ("s1", "s2")}
    sum(losses.values()).backward()
    assert model.query_encoder.backbone.first.weight.grad.abs().sum() > 0
    assert model.query_encoder.local_heads["s2"].hidden.in_features == 90
