"""How much of the classes is in frozen features: nearest neighbours, a linear layer, SVMs."""

# Shape shorthand in this module:
#   N: training items, M: test items, D: dimensions, C: classes, V: views of each training item

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# The costs among which each SVM's is chosen (the code of Goyal et al. 2019).
COSTS = tuple(10.0**power for power in range(-7, 3))
_FOLDS = 3
_SIMILARITIES = 2**26  # at a time

logger = logging.getLogger(__name__)


@torch.no_grad()
def knn(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Weighted nearest neighbours by cosine similarity (Wu et al. 2018, section 3.4).

    Each of the k nearest training items votes for its class with exp(similarity / temperature).

    Args:
        train_x, train_y: features of shape (N, D) and class numbers of shape (N,).
        test_x, test_y: of shape (M, D) and (M,).
        k: neighbours; all, where there are fewer.
        temperature: of the votes.

    Returns:
        top-1 accuracy in percent.
    """
    train_x, test_x = F.normalize(train_x.float()), F.normalize(test_x.float())
    classes = int(train_y.max()) + 1
    correct, block = 0, max(1, _SIMILARITIES // len(train_x))
    for x_BD, y_B in zip(test_x.split(block), test_y.split(block)):
        similarity, nearest = (x_BD @ train_x.T).topk(min(k, len(train_x)))
        weights = ((similarity - 1) / temperature).exp()  # the common factor keeps it below 1
        votes = weights.new_zeros(len(x_BD), classes).scatter_add_(1, train_y[nearest], weights)
        correct += int((votes.argmax(dim=1) == y_B).sum())
    return 100 * correct / len(test_y)


def linear(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    *,
    epochs: int = 100,
    learning_rate: float = 30.0,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """A linear classifier by MoCo's protocol (He et al. 2020, section 4.1).

    SGD with momentum 0.9 and no weight decay; the rate drops to a tenth at 60 % and 80 % of the
    epochs, and follows the batch where there are fewer items than one.

    Args:
        train_x: of shape (V, N, D); epoch e sees view e mod V of every item.
        train_y: class numbers of shape (N,).
        test_x, test_y: of shape (M, D) and (M,).
        epochs: passes over the N items.
        learning_rate: for a batch of 256.
        batch_size: items of a step.
        seed: of the initial weights and of the order.

    Returns:
        "top-1" accuracy in percent, and "top-5" where there are more than five classes.
    """
    views, count, width = train_x.shape
    classes = int(max(train_y.max(), test_y.max())) + 1
    generator = torch.Generator().manual_seed(seed)
    weight = (0.01 * torch.randn(classes, width, generator=generator)).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    batch_size = min(batch_size, count)
    optimizer = torch.optim.SGD([weight, bias], learning_rate * batch_size / 256, momentum=0.9)
    drops = [round(0.6 * epochs), round(0.8 * epochs)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    for epoch in range(epochs):
        x_ND = train_x[epoch % views]
        for rows in torch.randperm(count, generator=generator).split(batch_size):
            loss = F.cross_entropy(F.linear(x_ND[rows], weight, bias), train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    with torch.no_grad():
        ranked = F.linear(test_x, weight, bias).topk(min(5, classes)).indices
    hits = ranked == test_y[:, None]
    result = {"top-1": 100 * float(hits[:, 0].float().mean())}
    if classes > 5:
        result["top-5"] = 100 * float(hits.any(dim=1).float().mean())
    return result


def svm(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    *,
    num_workers: int = 1,
) -> dict[str, float]:
    """One linear SVM a class, with its cost chosen by 3-fold cross-validation (Goyal et al. 2019).

    Features are normalised to unit length, and positive items weigh double. A class that has no
    positive or no negative item in either half is left out.

    Args:
        train_x: of shape (N, D).
        train_y: class numbers of shape (N,), or of shape (N, C) 1 for present, 0 for absent, and
            -1 for unknown (absent in training, left out of the test, as VOC's "difficult").
        test_x, test_y: the same of M items.
        num_workers: classes at a time.

    Returns:
        "mAP", the mean over the classes of the average precision (the area under the curve of
        precision over recall), in percent; with one class an item also "top-1": of the SVMs at the
        one cost that is best for all classes.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: no class is left.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise ImportError("The SVM probe needs scikit-learn: pip install scikit-learn") from error
    x_ND, x_MD = (F.normalize(x.double()).numpy() for x in (train_x, test_x))
    if len(x_ND) < x_ND.shape[1]:  # all solutions lie in the span of the training items
        basis = np.linalg.qr(x_ND.T)[0]
        x_ND, x_MD = x_ND @ basis, x_MD @ basis
    y_NC, y_MC = _one_hot(train_y, test_y)
    kept = [c for c in range(y_NC.shape[1]) if _has_both(y_NC[:, c]) and _has_both(y_MC[:, c])]
    if not kept:
        raise ValueError("No class has positive and negative items in both halves; an SVM needs.")
    scores_of = _with_progress(lambda c: _validate(x_ND, y_NC[:, c] == 1), kept, num_workers)
    table = np.array(scores_of)  # of shape (C, costs)

    def decide(column: int, cost: float) -> np.ndarray:
        return _classifier(cost).fit(x_ND, y_NC[:, column] == 1).decision_function(x_MD)

    def precision(job: tuple[int, np.ndarray]) -> float:
        column, scores = job
        known = y_MC[:, column] >= 0
        decision = decide(column, _best(scores))[known]
        return average_precision_score(y_MC[known, column], decision)

    with ThreadPoolExecutor(num_workers) as pool:
        result = {"mAP": 100 * float(np.mean(list(pool.map(precision, zip(kept, table)))))}
        if train_y.ndim == 1:
            common = _best(table.mean(axis=0))
            decisions = list(pool.map(lambda column: decide(column, common), kept))
            guess = np.array(kept)[np.argmax(decisions, axis=0)]
            result["top-1"] = 100 * float((guess == test_y.numpy()).mean())
    return result


def chance(train_y: torch.Tensor, test_y: torch.Tensor) -> dict[str, float]:
    """What features without the class give, in percent, by metric.

    Args:
        train_y, test_y: as of :func:`svm`.

    Returns:
        "mAP", the mean share of positives; with one class an item also "top-1" and "top-5" of
        always answering with the most frequent classes of the training half.
    """
    y_NC, y_MC = _one_hot(train_y, test_y)
    kept = [c for c in range(y_NC.shape[1]) if _has_both(y_NC[:, c]) and _has_both(y_MC[:, c])]
    shares = [float((y_MC[y_MC[:, c] >= 0, c] == 1).mean()) for c in kept]
    result = {"mAP": 100 * float(np.mean(shares))} if shares else {}
    if train_y.ndim == 1:
        frequent = np.argsort(-y_NC.sum(axis=0), kind="stable")
        for count in (1, 5):
            result[f"top-{count}"] = 100 * float(np.isin(test_y.numpy(), frequent[:count]).mean())
    return result


def _one_hot(train_y: torch.Tensor, test_y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    if train_y.ndim == 1:
        classes = int(max(train_y.max(), test_y.max())) + 1
        train_y, test_y = F.one_hot(train_y, classes), F.one_hot(test_y, classes)
    return train_y.numpy(), test_y.numpy()


def _has_both(labels: np.ndarray) -> bool:
    return bool((labels == 1).any() and (labels == 0).any())


def _best(scores: np.ndarray) -> float:
    """The cost of the best score; the largest of several."""
    return COSTS[len(scores) - 1 - int(np.argmax(scores[::-1]))]


def _classifier(cost: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={True: 2, False: 1}, dual=False, max_iter=2000)


def _validate(features: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The average precision of each cost, the mean over the folds; zeros if there are too few."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(_FOLDS, int(positive.sum()), int((~positive).sum()))
    if folds < 2:
        return np.zeros(len(COSTS))
    cv = StratifiedKFold(folds, shuffle=True, random_state=0)  # a folder's images come by class
    return np.array(
        [
            cross_val_score(
                _classifier(cost), features, positive, cv=cv, scoring="average_precision"
            ).mean()
            for cost in COSTS
        ]
    )


def _with_progress(
    function: Callable[[int], np.ndarray], items: Sequence[int], num_workers: int
) -> list[np.ndarray]:
    """The function's results in order, in threads (liblinear lets others run)."""
    started = said = time.perf_counter()
    results = []
    with ThreadPoolExecutor(num_workers) as pool:
        for result in pool.map(function, items):
            results.append(result)
            now = time.perf_counter()
            if now - said > 10:
                said, left = now, (now - started) / len(results) * (len(items) - len(results))
                logger.info(
                    "SVM: class %d of %d, about %.0f s left", len(results), len(items), left
                )
    return results
