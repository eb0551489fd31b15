"""How much of the classes is in frozen features: nearest neighbours, a linear layer, SVMs."""

# Shape shorthand in this module:
#   N: training items, M: test items, D: dimensions, C: classes

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

# The costs among which each SVM's is chosen (the code of Goyal et al. 2019).
COSTS = tuple(10.0**power for power in range(-7, 3))
_FOLDS = 3
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
        "mAP", the mean average precision in percent; with one class an item also "top-1": of the
        SVMs at the one cost that is best for all classes.

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
    y_NC, y_MC, kept = _classes(train_y, test_y)
    if not kept:
        raise ValueError("No class has positive and negative items in both halves; an SVM needs.")

    def decide(column: int, cost: float) -> np.ndarray:
        return _classifier(cost).fit(x_ND, y_NC[:, column] == 1).decision_function(x_MD)

    with ThreadPoolExecutor(num_workers) as pool:  # liblinear lets other threads run
        scores = pool.map(lambda column: _validate(x_ND, y_NC[:, column] == 1), kept)
        table = np.array(list(tqdm(scores, "SVMs", len(kept), mininterval=10, delay=10)))
        decisions = pool.map(decide, kept, [_best(row) for row in table])
        precisions = [
            average_precision_score(y_M[y_M >= 0], decision[y_M >= 0])
            for y_M, decision in zip(y_MC.T[kept], decisions)
        ]
        result = {"mAP": 100 * float(np.mean(precisions))}
        if train_y.ndim == 1:
            common = _best(table.mean(axis=0))
            decided = list(pool.map(lambda column: decide(column, common), kept))
            guess = np.array(kept)[np.argmax(decided, axis=0)]
            result["top-1"] = 100 * float((guess == test_y.numpy()).mean())
    return result


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
    measure = {"cv": cv, "scoring": "average_precision"}
    scores = [cross_val_score(_classifier(c), features, positive, **measure) for c in COSTS]
    return np.mean(scores, axis=1)
