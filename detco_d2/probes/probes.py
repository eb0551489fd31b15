"""How much of the classes is in frozen features: nearest neighbours, a linear layer, SVMs."""

# Shape shorthand in this module:
#   N: training items, M: test items, D: dimensions, C: classes, P: SVMs, S: samples

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

# The costs among which each SVM's is chosen (the code of Goyal et al. 2019).
COSTS = tuple(10.0**power for power in range(-7, 3))
_FOLDS = 3
_MOST_STEPS, _TOLERANCE = 500, 1e-10  # of a step against the solution, in the metric of the steps
_SAMPLES = 1000
_SIMILARITIES = 2**26  # at a time


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
    """Top-1 accuracy in percent of weighted nearest neighbours (Wu et al. 2018, section 3.4).

    Each of the k training items of the highest cosine similarity (all, where there are fewer)
    votes for its class with exp(similarity / temperature). Features are of shape (N, D) and (M, D),
    class numbers of shape (N,) and (M,).
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
    seed: int = 0,
) -> dict[str, float]:
    """A linear classifier by MoCo's protocol (He et al. 2020, section 4.1).

    SGD with momentum 0.9 and no weight decay; the rate drops to a tenth at 60 % and 80 % of the
    epochs, and follows the batch where there are fewer items than one of 256. Features and class
    numbers are of the shapes that :func:`knn` takes.

    Returns:
        "top-1" accuracy in percent, and "top-5" where there are more than five classes.
    """
    count, width = train_x.shape
    classes = int(max(train_y.max(), test_y.max())) + 1
    generator = torch.Generator().manual_seed(seed)
    weight = (0.01 * torch.randn(classes, width, generator=generator)).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    batch_size = min(256, count)
    optimizer = torch.optim.SGD([weight, bias], 30.0 * batch_size / 256, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80])
    for _ in range(100):
        for rows in torch.randperm(count, generator=generator).split(batch_size):
            loss = F.cross_entropy(F.linear(train_x[rows], weight, bias), train_y[rows])
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
    train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor
) -> dict[str, Any]:
    """One linear SVM a class, with its cost chosen by 3-fold cross-validation (Goyal et al. 2019).

    Features are normalised to unit length, and positive items weigh double. A class that has no
    positive or no negative item in either half is left out.

    Args:
        train_x: of shape (N, D).
        train_y: class numbers of shape (N,), or of shape (N, C) 1 for present, 0 for absent, and
            -1 for unknown (absent in training, left out of the test, as VOC's "difficult").
        test_x, test_y: the same of M items.

    Returns:
        "mAP", the mean average precision in percent, and "interval", the ends of its 95 % interval
        by bootstrap over the test items; with one class an item also "top-1": of the SVMs at the
        one cost that is best for all classes.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: no class is left.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise ImportError("The SVM probe needs scikit-learn: pip install scikit-learn") from error
    y_NC, y_MC, kept = _classes(train_y, test_y)
    if not kept:
        raise ValueError("No class has positive and negative items in both halves; an SVM needs.")
    y_NC, y_MC = y_NC[:, kept], y_MC[:, kept]
    svms = LinearSVMs(F.normalize(train_x.double()))
    test_x = F.normalize(test_x.double())
    scores = _validate(svms, y_NC == 1)
    weights = svms.fit(y_NC == 1, np.array([_best(row) for row in scores]))
    decisions = svms.decide(test_x, weights)
    precisions = [
        average_precision_score(y_M[y_M >= 0], decision[y_M >= 0])
        for y_M, decision in zip(y_MC.T, decisions.T)
    ]
    mean = 100 * float(np.mean(precisions))
    result = {"mAP": mean, "interval": [mean + end for end in _scatter(y_MC, decisions)]}
    if train_y.ndim == 1:
        common = np.full(len(kept), _best(scores.mean(axis=0)))
        guess = svms.decide(test_x, svms.fit(y_NC == 1, common)).argmax(axis=1)
        result["top-1"] = 100 * float((np.array(kept)[guess] == test_y.numpy()).mean())
    return result


class LinearSVMs:
    """Linear SVMs on the same items, all at once.

    As in LIBLINEAR, each minimises |w|² / 2 + cost * sum_n weight_n max(0, 1 - sign_n w.x_n)², and
    the bias is a part of w. The eigenvalues of X^T X bound the curvature, so along its axes
    gradient steps need no search; they are accelerated, and start anew where they would turn back
    (O'Donoghue & Candes 2015, "Adaptive restart for accelerated gradient schemes").
    """

    def __init__(self, x_ND: torch.Tensor) -> None:
        x_ND = F.pad(x_ND, (0, 1), value=1.0)
        if len(x_ND) < x_ND.shape[1]:  # all solutions lie in the span of the items
            basis, r_NN = torch.linalg.qr(x_ND.T)
            self.curvatures, axes = torch.linalg.eigh(r_NN @ r_NN.T)
            self.axes = basis @ axes
        else:
            self.curvatures, self.axes = torch.linalg.eigh(x_ND.T @ x_ND)
        self.x_ND = (x_ND @ self.axes).float()

    def decide(self, x_MD: torch.Tensor, w_DP: torch.Tensor) -> np.ndarray:
        """The distances of items to the planes of P SVMs, of shape (M, P)."""
        return ((F.pad(x_MD, (0, 1), value=1.0) @ self.axes).float() @ w_DP).numpy()

    def fit(
        self,
        positive_NP: np.ndarray,
        costs_P: np.ndarray,
        used_NP: np.ndarray | float = 1.0,
        start_DP: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The solutions of P SVMs, of shape (D, P).

        Args:
            positive_NP: the classes.
            costs_P: the costs.
            used_NP: 0 for an item that an SVM does not see.
            start_DP: solutions of similar problems, which are near.
        """
        positive = torch.from_numpy(positive_NP)
        sign = positive.float() * 2 - 1
        weight = torch.from_numpy(2 * costs_P * (1 + positive_NP) * used_NP).float()
        metric = (1 + 4 * torch.from_numpy(costs_P) * self.curvatures.clamp(min=0)[:, None]).float()
        w = torch.zeros_like(metric) if start_DP is None else start_DP
        ahead, inertia = w, torch.ones(len(costs_P))
        for _ in range(_MOST_STEPS):
            slack = (1 - sign * (self.x_ND @ ahead)).clamp_(min=0).mul_(sign).mul_(weight)
            step = (ahead - self.x_ND.T @ slack) / metric
            before, w = w, ahead - step
            if bool(((step**2 * metric).sum(0) <= _TOLERANCE * (w**2 * metric).sum(0)).all()):
                break
            inertia[(step * metric * (w - before)).sum(0) > 0] = 1
            faster = (1 + (1 + 4 * inertia**2).sqrt()) / 2
            ahead, inertia = w + (inertia - 1) / faster * (w - before), faster
        return w


def chance(train_y: torch.Tensor, test_y: torch.Tensor) -> dict[str, float]:
    """What features without the class give, in percent, by metric; labels as of :func:`svm`.

    The share of positives; with one class an item also the most frequent classes as the answer.
    """
    y_NC, y_MC, kept = _classes(train_y, test_y)
    shares = [float((y_MC[y_MC[:, c] >= 0, c] == 1).mean()) for c in kept]
    result = {"mAP": 100 * float(np.mean(shares))} if shares else {}
    if train_y.ndim == 1:
        frequent = np.argsort(-y_NC.sum(axis=0), kind="stable")
        for count in (1, 5):
            result[f"top-{count}"] = 100 * float(np.isin(test_y.numpy(), frequent[:count]).mean())
    return result


def _classes(
    train_y: torch.Tensor, test_y: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Labels of shape (N, C) and (M, C), and the classes with both answers in both halves."""
    if train_y.ndim == 1:
        classes = int(max(train_y.max(), test_y.max())) + 1
        train_y, test_y = F.one_hot(train_y, classes), F.one_hot(test_y, classes)
    y_NC, y_MC = train_y.numpy(), test_y.numpy()
    both = [(y == 1).any(axis=0) & (y == 0).any(axis=0) for y in (y_NC, y_MC)]
    return y_NC, y_MC, np.flatnonzero(both[0] & both[1]).tolist()


def _best(scores: np.ndarray) -> float:
    """The cost of the best score; the largest of several."""
    return COSTS[len(scores) - 1 - int(np.argmax(scores[::-1]))]


def _validate(svms: LinearSVMs, positive_NC: np.ndarray) -> np.ndarray:
    """The average precision by class and cost, the mean over the folds; zeros without folds."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    folds = []  # (class, held-out items)
    for column, positive in enumerate(positive_NC.T):
        count = min(_FOLDS, int(positive.sum()), int((~positive).sum()))
        if count > 1:  # shuffled, since a folder's images come by class
            cv = StratifiedKFold(count, shuffle=True, random_state=0)
            folds += [(column, held) for _, held in cv.split(positive, positive)]
    scores = np.zeros((positive_NC.shape[1], len(COSTS)))
    if not folds:
        return scores
    positive_NP = positive_NC[:, [column for column, _ in folds]]
    used_NP = np.ones(positive_NP.shape)
    for i, (_, held) in enumerate(folds):
        used_NP[held, i] = 0
    share = 1 / np.bincount([column for column, _ in folds], minlength=len(scores))
    w_DP = None
    for i, cost in enumerate(tqdm(COSTS, "SVMs", mininterval=10, delay=10)):
        w_DP = svms.fit(positive_NP, np.full(len(folds), cost), used_NP, w_DP)
        decisions = (svms.x_ND @ w_DP).numpy()
        for (column, held), decision, positive in zip(folds, decisions.T, positive_NP.T):
            score = average_precision_score(positive[held], decision[held])
            scores[column, i] += share[column] * score
    return scores


def _scatter(y_MC: np.ndarray, decisions_MC: np.ndarray) -> list[float]:
    """The 2.5th and the 97.5th percentile of the mAP over test items drawn with replacement.

    They are relative to its mean, which is too high: copies of a positive item are equally near.
    """
    size = len(y_MC)
    drawn_SM = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), _SAMPLES)
    precisions = []
    for y_M, decision in zip(y_MC.T, decisions_MC.T):
        ranked = np.argsort(-decision)
        ranked = ranked[y_M[ranked] >= 0]
        drawn = drawn_SM[:, ranked]
        hits = drawn * (y_M[ranked] == 1)
        share = hits.cumsum(axis=1) / np.maximum(drawn.cumsum(axis=1), 1)
        with np.errstate(invalid="ignore"):  # a class may be missing
            precisions.append((hits * share).sum(axis=1) / hits.sum(axis=1))
    means = 100 * np.nanmean(precisions, axis=0)
    return (np.nanpercentile(means, [2.5, 97.5]) - np.nanmean(means)).tolist()
