"""What is watched, against its definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from detco_d2.modeling.losses import info_nce
from detco_d2.modeling.monitors import (
    embedding_spread,
    is_among_nearest,
    squared_distance,
    uniformity,
)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_spread_is_one_on_the_sphere_and_zero_when_collapsed():
    uniform = unit(4096, 64).float()
    assert embedding_spread(uniform).item() == pytest.approx(1.0, abs=0.02)
    assert embedding_spread(uniform[:1].expand(32, 64)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("negatives", [3, 500, 8193])
def test_top_k_counts_the_positives_among_the_k_nearest_of_all_keys(negatives):
    query, queue = unit(2, 40, 8), unit(2, negatives, 8, seed=2)
    key = F.normalize(query + 0.5 * unit(2, 40, 8, seed=1), dim=2)
    positive = (query * key).sum(dim=2, keepdim=True)
    logits = torch.cat([positive, query @ queue.transpose(1, 2)], dim=2)
    for k in (1, 5):
        nearest = logits.topk(min(k, negatives + 1), dim=2).indices
        assert torch.equal(is_among_nearest(query, key, queue, k), (nearest == 0).any(dim=2))
    assert torch.equal(is_among_nearest(query, key, queue, 1), info_nce(query, key, queue, 0.2)[1])


def test_alignment_is_the_squared_distance_zero_for_equal_and_four_for_opposite():
    query, key = unit(6, 8), unit(6, 8, seed=1)
    expected = [math.dist(q, k) ** 2 for q, k in zip(query.tolist(), key.tolist())]
    assert squared_distance(query, key).tolist() == pytest.approx(expected)
    assert squared_distance(query, query).tolist() == 6 * [0]
    assert squared_distance(query, -query).tolist() == pytest.approx(6 * [4])


def test_uniformity_is_the_log_of_the_mean_kernel_over_the_pairs():
    points = unit(2, 6, 8)
    for found, batch in zip(uniformity(points).tolist(), points):
        kernels = [math.exp(-2 * distance**2) for distance in torch.pdist(batch).tolist()]
        assert found == pytest.approx(math.log(sum(kernels) / len(kernels)))


def test_uniformity_is_zero_in_a_point_and_known_on_the_sphere():
    assert uniformity(unit(1, 8).expand(32, 8)).item() == pytest.approx(0, abs=1e-9)
    # in three dimensions x.y is uniform in -1..1, so the mean of e^(4 x.y) is sinh(4) / 4
    expected = math.log(math.sinh(4) / 4) - 4
    assert uniformity(unit(4000, 3)).item() == pytest.approx(expected, abs=0.02)
    assert uniformity(unit(4000, 128)).item() == pytest.approx(-4 + 8 / 128, abs=0.01)
    assert math.isnan(uniformity(unit(1, 8)).item())  # no pair
