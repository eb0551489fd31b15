"""The losses against double loops written from the paper's equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from detco_d2.modeling.losses import info_nce
from detco_d2.modeling.monitors import alignment, embedding_spread, top_k_accuracy, uniformity

from ..conftest import make_batch, tiny_config

# name of a family -> equation, view of the query, view of the key and of the queue
EQUATIONS = {
    "gg": ("eq. 2", "global", "global"),
    "gl": ("eq. 4", "local", "global"),
    "ll": ("eq. 5", "local", "local"),
}


def reference(query, key, queue, temperature):
    """-log( e^{q.k/t} / (e^{q.k/t} + sum_n e^{q.n/t}) ), number by number."""
    total = 0.0
    for q, k in zip(query.tolist(), key.tolist()):
        positive = math.exp(sum(a * b for a, b in zip(q, k)) / temperature)
        negatives = 0.0
        for n in queue.tolist():
            negatives += math.exp(sum(a * b for a, b in zip(q, n)) / temperature)
        total += -math.log(positive / (positive + negatives))
    return total / len(query)


@pytest.fixture(scope="module")
def forward():
    """The losses of one step of a float64 DetCo, and everything they were computed from."""
    torch.manual_seed(0)
    model = build_model(tiny_config()).double().train()
    batch = make_batch()
    with torch.no_grad():
        for parameter in model.key_encoder.parameters():  # or queries and keys would be near
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.momentum = 1.0
        views = {name: model._normalise(view) for name, view in batch.items()}
        queries = model.query_encoder(views["global_query"], views["local_query"])
        keys = model.key_encoder(views["global_key"], views["local_key"])
    queue = dict(zip(model.queue_names, model.queue.features.clone()))
    return model(batch), queries, keys, queue, model


@pytest.mark.parametrize("stage", ["res2", "res3", "res4", "res5"])
@pytest.mark.parametrize("family", EQUATIONS)
def test_each_of_the_12_losses_follows_its_equation(forward, family, stage):
    losses, queries, keys, queue, model = forward
    _, query_view, key_view = EQUATIONS[family]
    expected = reference(
        queries[query_view, stage], keys[key_view, stage], queue[key_view, stage], 0.2
    )
    weight = {"res2": 0.1, "res3": 0.4, "res4": 0.7, "res5": 1.0}[stage]  # w_i of eq. 1
    assert losses[f"loss_{family}_{stage}"].item() == pytest.approx(weight * expected, rel=1e-9)


def test_there_are_12_losses_and_no_other(forward):
    names = {f"loss_{f}_res{i}" for f in ("gg", "ll", "gl") for i in (2, 3, 4, 5)}
    assert set(forward[0]) == names


def test_top1_counts_queries_nearest_to_their_own_key():
    key = F.normalize(torch.eye(4), dim=1)
    queue = -key
    query = key.clone()
    query[0] = -key[0]
    _, top1 = info_nce(query, key, queue, 0.2)
    assert top1.item() == 0.75


def test_loss_of_equal_embeddings_is_log_of_k_plus_one():
    ones = F.normalize(torch.ones(3, 8), dim=1)
    loss, _ = info_nce(ones, ones, F.normalize(torch.ones(7, 8), dim=1), 0.2)
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


def test_spread_is_one_on_the_sphere_and_zero_when_collapsed():
    generator = torch.Generator().manual_seed(0)
    uniform = F.normalize(torch.randn(4096, 64, generator=generator), dim=1)
    assert embedding_spread(uniform).item() == pytest.approx(1.0, abs=0.02)
    assert embedding_spread(uniform[:1].expand(32, 64)).item() == pytest.approx(0.0, abs=1e-6)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("negatives", [3, 500, 8193])
def test_top_k_counts_the_positives_among_the_k_nearest_of_all_keys(negatives):
    query, queue = unit(40, 8), unit(negatives, 8, seed=2)
    key = F.normalize(query + 0.5 * unit(40, 8, seed=1), dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1)
    for k in (1, 5):
        nearest = logits.topk(min(k, negatives + 1), dim=1).indices
        expected = (nearest == 0).any(dim=1).double().mean().item()
        assert top_k_accuracy(query, key, queue, k).item() == pytest.approx(expected)
    assert top_k_accuracy(query, key, queue, 1) == info_nce(query, key, queue, 0.2)[1]


def test_alignment_is_the_mean_squared_distance_zero_for_equal_and_four_for_opposite():
    query, key = unit(2, 6, 8), unit(2, 6, 8, seed=1)
    expected = [
        sum(math.dist(q, k) ** 2 for q, k in zip(query[i].tolist(), key[i].tolist())) / 6
        for i in range(2)
    ]
    assert alignment(query, key).tolist() == pytest.approx(expected)
    assert alignment(query, query).tolist() == [0, 0]
    assert alignment(query, -query).tolist() == pytest.approx([4, 4])


def test_uniformity_is_the_log_of_the_mean_kernel_over_the_pairs():
    points = unit(2, 6, 8)
    for found, batch in zip(uniformity(points).tolist(), points):
        distances = torch.pdist(batch).tolist()
        kernels = [math.exp(-2 * distance**2) for distance in distances]
        assert found == pytest.approx(math.log(sum(kernels) / len(kernels)))


def test_uniformity_is_zero_in_a_point_and_known_on_the_sphere():
    assert uniformity(unit(1, 8).expand(32, 8)).item() == pytest.approx(0, abs=1e-9)
    # in three dimensions x.y is uniform in -1..1, so the mean of e^(4 x.y) is sinh(4) / 4
    assert uniformity(unit(4000, 3)).item() == pytest.approx(
        math.log(math.sinh(4) / 4) - 4, abs=0.02
    )
    assert uniformity(unit(4000, 128)).item() == pytest.approx(-4 + 8 / 128, abs=0.01)
    assert math.isnan(uniformity(unit(1, 8)).item())  # no pair
