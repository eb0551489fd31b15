"""Probes on planted features: all of the class, none of it, and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from detco_d2.probes.probes import LinearSVMs, _scatter, knn, linear, svm

CLASSES, TRAIN, TEST, DIM = 4, 400, 400, 16
ALL = {"mAP": pytest.approx(100), "interval": pytest.approx([100, 100])}


def planted(count, seed, noise=0.1):
    """Features that are their class's direction with some noise, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = 3 * torch.eye(CLASSES, DIM)[y] + noise * torch.randn(count, DIM, generator=generator)
    return x, y


def shuffled(y, seed):
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


def test_features_that_carry_the_class_give_all_of_it():
    halves = (*planted(TRAIN, 0), *planted(TEST, 1))
    assert knn(*halves) == 100
    assert linear(*halves) == {"top-1": 100}
    assert svm(*halves) == {**ALL, "top-1": 100}


def test_shuffled_labels_give_chance_and_the_share_of_positives():
    x, y = planted(TRAIN, 0, noise=3)
    test_x, test_y = planted(TEST, 1, noise=3)
    halves = (x, shuffled(y, 2), test_x, shuffled(test_y, 3))
    chance = 1 / CLASSES  # four standard deviations of a guess: one test in 16,000 fails by chance
    bound = 100 * 4 * math.sqrt(chance * (1 - chance) / TEST)
    found = svm(*halves)
    found |= {"knn": knn(*halves), "linear": linear(*halves)["top-1"]}
    low, high = found.pop("interval")
    assert low < found["mAP"] < high < low + 15
    for name, value in found.items():
        assert abs(value - 100 * chance) < (5 if name == "mAP" else bound), name


def test_neighbours_vote_by_similarity():
    """Two far neighbours of class 1 outvote one near neighbour of class 0 only when hot."""
    angles = torch.tensor([0.1, 0.8, 0.8])
    train_x = torch.stack([angles.cos(), angles.sin()], dim=1)
    halves = (train_x, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert knn(*halves, k=3, temperature=0.07) == 100
    assert knn(*halves, k=3, temperature=10) == 0
    assert knn(*halves, k=1, temperature=10) == 100
    assert knn(*halves, k=20) == 100  # more than there are


def test_nearest_neighbours_do_not_depend_on_scale_or_block(monkeypatch):
    x, y = planted(TRAIN, 0, noise=3)
    test_x, test_y = planted(TEST, 1, noise=3)
    whole = knn(x, y, test_x, test_y)
    assert 30 < whole < 95
    monkeypatch.setattr("detco_d2.probes.probes._SIMILARITIES", 7 * TRAIN)
    assert knn(100 * x, y, 0.01 * test_x, test_y) == whole


@pytest.mark.parametrize("count, rate", [(512, 30), (64, 30 * 64 / 256)])
def test_the_linear_rate_follows_the_batch_drops_twice_and_never_decays(monkeypatch, count, rate):
    groups = []
    step = torch.optim.SGD.step

    def note(self, *args, **kwargs):
        groups.append(dict(self.param_groups[0]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    x, y = planted(count, 0)
    linear(x, y, x, y)
    steps = max(1, count // 256)  # an epoch, of batches of 256
    rates = [rate] * 60 * steps + [rate / 10] * 20 * steps + [rate / 100] * 20 * steps
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    assert groups[0]["momentum"] == 0.9 and groups[0]["weight_decay"] == 0


def test_top_5_comes_with_more_than_five_classes():
    y = torch.arange(60) % 6
    x = torch.eye(6)[y]
    assert linear(x, y, x, y) == {"top-1": 100, "top-5": 100}
    confused = x.clone()
    confused[y == 0] = 0.9 * torch.eye(6)[1] + 0.1 * torch.eye(6)[0]
    result = linear(x, y, confused, y)
    assert result["top-1"] == pytest.approx(100 * 5 / 6) and result["top-5"] == 100


def test_svms_of_several_classes_an_image_leave_out_what_is_unknown():
    x, y = planted(TRAIN, 0)
    several = torch.nn.functional.one_hot(y, CLASSES)
    several[:, 0] |= several[:, 1]  # class 0 wherever 1 is
    assert svm(x, several, x, several) == ALL
    wrong = several.clone()
    wrong[:40, 2] = 1 - wrong[:40, 2]
    assert svm(x, several, x, wrong)["mAP"] < 99
    wrong[:40, 2] = -1
    assert svm(x, several, x, wrong)["mAP"] == pytest.approx(100)


def test_fewer_items_than_dimensions_are_solved_in_their_span():
    x, y = planted(60, 0, noise=2)
    test_x, test_y = planted(TEST, 1, noise=2)
    narrow = svm(x, y, test_x, test_y)
    wide = [torch.nn.functional.pad(z, (0, 100)) for z in (x, test_x)]  # 116 dimensions
    assert svm(wide[0], y, wide[1], test_y)["mAP"] == pytest.approx(narrow["mAP"], abs=0.1)
    assert 40 < narrow["mAP"] < 95


@pytest.mark.parametrize("items", [300, 20])  # more and fewer than dimensions
@pytest.mark.parametrize("cost", [1e-4, 1.0, 100.0])
def test_svms_are_those_of_scikit_learn(items, cost):
    x, y = planted(items, 0, noise=3)
    x = torch.nn.functional.pad(x.double() / 10, (0, 10), value=0.1)
    positive = y[:, None].numpy() == [0, 1]
    svms = LinearSVMs(x)
    decisions = svms.decide(x, svms.fit(positive, np.full(2, cost)))
    settings = {"C": cost, "class_weight": {True: 2, False: 1}, "tol": 1e-8, "max_iter": 100000}
    for decision, column in zip(decisions.T, positive.T):
        expected = LinearSVC(**settings, dual=False).fit(x.numpy(), column).decision_function(x)
        assert np.abs(decision - expected).max() < 1e-2 * np.abs(expected).max()


def test_the_interval_is_that_of_draws_of_test_items(monkeypatch):
    monkeypatch.setattr("detco_d2.probes.probes._SAMPLES", 20)
    rng = np.random.default_rng(1)
    y, decisions = rng.integers(-1, 2, (60, 2)), rng.normal(size=(60, 2))
    means = []
    for drawn in np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 20):
        items = np.repeat(np.arange(60), drawn)
        known = [items[y[items, column] >= 0] for column in (0, 1)]
        pairs = [(y[rows, c] == 1, decisions[rows, c]) for c, rows in enumerate(known)]
        means.append(100 * np.mean([average_precision_score(*pair) for pair in pairs]))
    expected = np.percentile(means, [2.5, 97.5]) - np.mean(means)
    assert _scatter(y, decisions) == pytest.approx(expected)


def test_svms_want_a_class_with_both_answers():
    x = torch.randn(8, 4)
    same = torch.zeros(8, dtype=torch.long)
    with pytest.raises(ValueError, match="No class has positive and negative items"):
        svm(x, same, x, same)


def test_a_class_of_one_training_item_gets_an_svm_without_cross_validation():
    x, y = torch.eye(3)[[0, 1, 0, 1, 2]], torch.tensor([0, 1, 0, 1, 2])
    assert svm(x, y, x, y) == {**ALL, "top-1": 100}


def test_a_missing_scikit_learn_is_said_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    x, y = planted(8, 0)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        svm(x, y, x, y)
