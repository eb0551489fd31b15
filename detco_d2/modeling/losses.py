"""InfoNCE and the numbers that tell whether it learns."""

# Shape shorthand in this module:
#   S: queues (stages), N: queries of a queue, D: embedding dimension, K: negatives

import math
from typing import Any

import torch
import torch.nn.functional as F

# Keys that one pass holds the similarities of: the block stays in a core's cache, and on a GPU
# of batch 256 it takes some 70 MB.
_BLOCK = 8192
# e^(1 / t) is 2e17 here: it and its sums are far from float32's limits, so nothing is subtracted.
MIN_FUSED_TEMPERATURE = 0.025


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


class _FusedInfoNCE(torch.autograd.Function):
    """Walks once over the queue and keeps the gradient of the queries, nothing of size N x K.

    With unit vectors no logit exceeds 1 / t, so that the softmax needs no maximum, and
    d loss / d q = (sum_n p_n n - (1 - p_k) k) / t adds up along with the normaliser.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_SND: torch.Tensor,
        key_SND: torch.Tensor,
        queue_SKD: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query_SND = query_SND / temperature
        positive_SN = (query_SND * key_SND).sum(dim=2)
        total_SN = positive_SN.exp()
        mean_SND = key_SND * total_SN[..., None]
        positive_weight_SN, nearest_SN = total_SN.clone(), torch.zeros_like(total_SN)
        query_SDN = query_SND.transpose(1, 2)
        for block_SBD in queue_SKD.split(_BLOCK, dim=1):
            weight_SBN = torch.bmm(block_SBD, query_SDN).exp_()
            total_SN += weight_SBN.sum(dim=1)
            mean_SND.baddbmm_(weight_SBN.transpose(1, 2), block_SBD)
            nearest_SN = torch.maximum(nearest_SN, _column_maximum(weight_SBN))
        loss_SN = total_SN.log() - positive_SN
        ctx.save_for_backward((mean_SND / total_SN[..., None] - key_SND) / temperature)
        is_nearest_SN = positive_weight_SN >= nearest_SN
        ctx.mark_non_differentiable(is_nearest_SN)
        return loss_SN, is_nearest_SN

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope_SND,) = ctx.saved_tensors
        return grads[0][..., None] * slope_SND, None, None, None


def _column_maximum(weight_SBN: torch.Tensor, fold: int = 64) -> torch.Tensor:
    """The maximum over dimension 1; folding makes rows wide enough for vector instructions."""
    stages, block, queries = weight_SBN.shape
    if block % fold:
        return weight_SBN.amax(dim=1)
    folded = weight_SBN.view(stages, block // fold, fold * queries).amax(dim=1)
    return folded.view(stages, fold, queries).amax(dim=1)


def fused_info_nce(
    query_SND: torch.Tensor, key_SND: torch.Tensor, queue_SKD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`info_nce` of S queues at once, in one pass over each and without its logits.

    The queue may change before the backward pass, which does not read it again.

    Args:
        query_SND: L2-normalised queries, of shape (S, N, D).
        key_SND: L2-normalised positive keys, of shape (S, N, D).
        queue_SKD: L2-normalised negatives, of shape (S, K, D).
        temperature: at least `MIN_FUSED_TEMPERATURE`.

    Returns:
        the loss of each query, and whether its positive is the nearest key, both (S, N).
    """
    return _FusedInfoNCE.apply(query_SND, key_SND, queue_SKD, temperature)


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
    for block_BD in queue_KD.split(_BLOCK):
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
