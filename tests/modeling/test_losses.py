"""The losses against double loops written from the paper's equations."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from ..conftest import make_batch, tiny_config

# Of eq. 2, 4 and 5 the view of the query, and that of the key and of the queue.
VIEWS = {"gg": ("global", "global"), "gl": ("local", "global"), "ll": ("local", "local")}


def reference(query, key, queue, t):
    """-log( e^{q.k/t} / (e^{q.k/t} + sum_n e^{q.n/t}) ), number by number."""
    total = 0.0
    for q, k in zip(query.tolist(), key.tolist()):
        terms = [math.exp(sum(a * b for a, b in zip(q, n)) / t) for n in [k, *queue.tolist()]]
        total += -math.log(terms[0] / sum(terms))
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
        views = {name: model.normalise(view) for name, view in batch.items()}
        queries = model.query_encoder(views["global_query"], views["local_query"])
        keys = model.key_encoder(views["global_key"], views["local_key"])
    queue = dict(zip(model.queue_names, model.queue.features.clone()))
    return model(batch), queries, keys, queue


@pytest.mark.parametrize("stage", ["res2", "res3", "res4", "res5"])
@pytest.mark.parametrize("family", VIEWS)
def test_each_of_the_12_losses_follows_its_equation(forward, family, stage):
    losses, queries, keys, queue = forward
    assert len(losses) == 12
    query_view, key_view = VIEWS[family]
    compared = queries[query_view, stage], keys[key_view, stage], queue[key_view, stage]
    expected = reference(*compared, 0.2)
    weight = {"res2": 0.1, "res3": 0.4, "res4": 0.7, "res5": 1.0}[stage]  # w_i of eq. 1
    assert losses[f"loss_{family}_{stage}"].item() == pytest.approx(weight * expected, rel=1e-9)
