"""InfoNCE and the numbers that tell whether it learns."""

# Shape shorthand in this module:
#   N: images, D: embedding dimension, K: negatives

import torch
import torch.nn.functional as F


def info_nce(
    query_ND: torch.Tensor, key_ND: torch.Tensor, queue_KD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE with one positive and K shared negatives (paper eq. 2, 4 and 5).

    -log( e^{q.k/t} / (e^{q.k/t} + sum_n e^{q.n/t}) ), the mean over the batch.

    Args:
        query_ND: L2-normalised queries q, of shape (N, D).
        key_ND: L2-normalised positive keys k, of shape (N, D).
        queue_KD: L2-normalised negatives n, of shape (K, D).
        temperature: t > 0.

    Returns:
        the loss, a scalar, and the share of queries whose positive is the nearest of the K + 1
        keys (chance is 1 / (K + 1)), a scalar without gradient.
    """
    positive_N1 = (query_ND * key_ND).sum(dim=1, keepdim=True)
    negative_NK = query_ND @ queue_KD.T
    logits = torch.cat([positive_N1, negative_NK], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    top1 = (logits.detach().argmax(dim=1) == 0).to(logits.dtype).mean()
    return F.cross_entropy(logits, target), top1


def embedding_spread(embedding_ND: torch.Tensor) -> torch.Tensor:
    """How far L2-normalised embeddings spread: sqrt(D) times the mean deviation a dimension.

    1 for embeddings uniform on the sphere, 0 when all are the same (a collapse); NaN for N = 1.

    Args:
        embedding_ND: of shape (N, D).

    Returns:
        a scalar without gradient.
    """
    deviation_D = embedding_ND.detach().std(dim=0)
    return deviation_D.mean() * embedding_ND.shape[1] ** 0.5
