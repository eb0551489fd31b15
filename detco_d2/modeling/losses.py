"""InfoNCE in one pass over the queues; tests/references.py has it by its formula."""

# Shape shorthand in this module:
#   S: queues (stages), N: queries of a queue, D: embedding dimension, K: negatives,
#   B: negatives of a block

from typing import Any

import torch

# Keys that one pass holds the similarities of: the block stays in a core's cache, and on a GPU
# of batch 256 it takes some 70 MB.
BLOCK = 8192
# Exponents are taken relative to the maximum so far in steps of this size: e^32 and its sums are
# far from float32's limits, and at a temperature above 1 / 32 nothing is ever subtracted.
_STEP = 32.0


class _FusedInfoNCE(torch.autograd.Function):
    """Walks once over the queue and keeps the gradient of the queries, nothing of size N x K.

    d loss / d q = (sum_n p_n n - (1 - p_k) k) / t adds up along with the normaliser. Both are kept
    relative to e^shift, where the shift follows the largest logit so far.
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
        largest_SN, shift_SN = positive_SN, _shift(positive_SN)
        total_SN = (positive_SN - shift_SN).exp()
        mean_SND = key_SND * total_SN[..., None]
        query_SDN = query_SND.transpose(1, 2)
        for block_SBD in queue_SKD.split(BLOCK, dim=1):
            logit_SBN = torch.bmm(block_SBD, query_SDN)
            largest_SN = torch.maximum(largest_SN, _column_maximum(logit_SBN))
            before_SN, shift_SN = shift_SN, _shift(largest_SN)
            rescale_SN = (before_SN - shift_SN).exp()
            weight_SBN = logit_SBN.sub_(shift_SN[:, None]).exp_()
            total_SN = total_SN * rescale_SN + weight_SBN.sum(dim=1)
            mean_SND *= rescale_SN[..., None]
            mean_SND.baddbmm_(weight_SBN.transpose(1, 2), block_SBD)
        loss_SN = total_SN.log() + shift_SN - positive_SN
        ctx.save_for_backward((mean_SND / total_SN[..., None] - key_SND) / temperature)
        is_nearest_SN = positive_SN >= largest_SN
        ctx.mark_non_differentiable(is_nearest_SN)
        return loss_SN, is_nearest_SN

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope_SND,) = ctx.saved_tensors
        return grads[0][..., None] * slope_SND, None, None, None


def _shift(largest: torch.Tensor) -> torch.Tensor:
    """The logit in whole steps towards 0; the maximum stays within one step of it."""
    return (largest / _STEP).trunc() * _STEP


def _column_maximum(logit_SBN: torch.Tensor, fold: int = 64) -> torch.Tensor:
    """The maximum over dimension 1; folding makes rows wide enough for vector instructions."""
    stages, block, queries = logit_SBN.shape
    fold = fold if block % fold == 0 else 1
    folded = logit_SBN.view(stages, -1, fold * queries).amax(dim=1)
    return folded.view(stages, fold, queries).amax(dim=1)


def info_nce(
    query_SND: torch.Tensor, key_SND: torch.Tensor, queue_SKD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute InfoNCE with one positive and K shared negatives (paper eq. 2, 4 and 5), S at once.

    -log( e^{q.k/t} / (e^{q.k/t} + sum_n e^{q.n/t}) ) of each query. The queue may change before
    the backward pass, which does not read it again.

    Args:
        query_SND: L2-normalised queries q, of shape (S, N, D).
        key_SND: L2-normalised positive keys k, of shape (S, N, D).
        queue_SKD: L2-normalised negatives n, of shape (S, K, D).
        temperature: t > 0.

    Returns:
        the loss of each query, and whether its positive is the nearest of the K + 1 keys (chance
        is 1 / (K + 1)), both of shape (S, N).
    """
    return _FusedInfoNCE.apply(query_SND, key_SND, queue_SKD, temperature)
