"""InfoNCE, by its formula and in one pass over the queues."""

# Shape shorthand in this module:
#   S: queues (stages), N: queries of a queue, D: embedding dimension, K: negatives

from typing import Any

import torch
import torch.nn.functional as F

# Keys that one pass holds the similarities of: the block stays in a core's cache, and on a GPU
# of batch 256 it takes some 70 MB.
BLOCK = 8192
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
        for block_SBD in queue_SKD.split(BLOCK, dim=1):
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
