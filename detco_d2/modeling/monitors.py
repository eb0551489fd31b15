"""Numbers that tell whether the contrast learns; none of them changes what is learnt."""

# Shape shorthand in this module:
#   N: queries of a queue, D: embedding dimension, K: negatives

import math

import torch

from .losses import BLOCK


def embedding_spread(embedding: torch.Tensor) -> torch.Tensor:
    """How far L2-normalised embeddings spread: sqrt(D) times the mean deviation a dimension.

    1 for embeddings uniform on the sphere, 0 when all are the same (a collapse); NaN for N = 1.

    Args:
        embedding: of shape (..., N, D).

    Returns:
        of shape (...), without gradient.
    """
    deviation = embedding.detach().std(dim=-2)
    return deviation.mean(dim=-1) * embedding.shape[-1] ** 0.5


def top_k_accuracy(
    query_ND: torch.Tensor, key_ND: torch.Tensor, queue_KD: torch.Tensor, k: int
) -> torch.Tensor:
    """The share of queries whose positive is among the k nearest of the K + 1 keys.

    Walks over the queue in blocks; chance is k / (K + 1), and all positives are when K < k.

    Args:
        query_ND, key_ND, queue_KD: as in :func:`info_nce`.
        k: at least 1.

    Returns:
        a scalar without gradient.
    """
    query_ND = query_ND.detach()
    positive_N1 = (query_ND * key_ND).sum(dim=1, keepdim=True)
    nearer_N = torch.zeros_like(positive_N1[:, 0])
    for block_BD in queue_KD.split(BLOCK):
        nearer_N += (query_ND @ block_BD.T > positive_N1).sum(dim=1)
    return (nearer_N < k).to(query_ND.dtype).mean()


def alignment(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of queries to their positives (Wang & Isola 2020, alpha = 2).

    0 when all positives coincide with their queries, 2 for unrelated vectors, at most 4.

    Args:
        query, key: L2-normalised, of shape (..., N, D).

    Returns:
        of shape (...), without gradient.
    """
    return (query.detach() - key).square().sum(dim=-1).mean(dim=-1)


def uniformity(embedding: torch.Tensor) -> torch.Tensor:
    """log of the mean of e^(-2 |x - y|^2) over the pairs of a batch (Wang & Isola 2020, t = 2).

    0 when all embeddings are the same; uniform on the sphere gives about -4 + 8 / D (-3.94 for
    D = 128). NaN for N = 1, which has no pairs.

    Args:
        embedding: L2-normalised, of shape (..., N, D).

    Returns:
        of shape (...), without gradient.
    """
    embedding = embedding.detach()
    count = embedding.shape[-2]
    # of unit vectors, |x - y|^2 = 2 - 2 x.y
    kernel = torch.exp(4 * (embedding @ embedding.transpose(-1, -2) - 1))
    total = kernel.sum(dim=(-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return (total / (count * (count - 1) or math.nan)).log()
