"""Numbers that tell whether the contrast learns; none of them changes what is learnt."""

# Shape shorthand in this module:
#   S: queues (stages), N: queries of a queue, D: embedding dimension, K: negatives

import math
from collections import defaultdict

import torch

from ..compat import current_event_storage
from .losses import BLOCK


class Monitor:
    """Gathers such numbers over the parts of a step, and records their means when it counts.

    Attributes:
        closely: also note, of the next parts, what takes time to compute: top-5, alignment and
            uniformity.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.closely = False
        self._noted: dict[str, list[torch.Tensor]] = defaultdict(list)

    def note_terms(
        self,
        terms: list[tuple[str, str]],
        loss_SN: torch.Tensor,
        is_nearest_SN: torch.Tensor,
        query_SND: torch.Tensor,
        key_SND: torch.Tensor,
        queue_SKD: torch.Tensor,
    ) -> None:
        """Note `info_nce/`, `top1/`, and closely `top5/` and `alignment/`, of what is compared.

        Args:
            terms: (family, stage) of each; they share the S x N queries equally, in this order.
            loss_SN, is_nearest_SN: what :func:`info_nce` gives.
            query_SND, key_SND, queue_SKD: what it was given.
        """
        self._note("info_nce", terms, loss_SN)
        self._note("top1", terms, is_nearest_SN)
        if self.closely:
            scaled_SND = query_SND / self.temperature  # of which top-1 counts, to the last bit
            self._note("top5", terms, is_among_nearest(scaled_SND, key_SND, queue_SKD, k=5))
            self._note("alignment", terms, squared_distance(query_SND, key_SND))

    @torch.no_grad()
    def note_views(self, embeddings: dict[tuple[str, str], torch.Tensor]) -> None:
        """Note `spread/`, and closely `uniformity/`, of embeddings (N, D) by (view, stage)."""
        stacked = torch.stack(list(embeddings.values()))
        self._note("spread", list(embeddings), embedding_spread(stacked))
        if self.closely:
            self._note("uniformity", list(embeddings), uniformity(stacked))

    def _note(self, kind: str, labels: list[tuple[str, str]], values: torch.Tensor) -> None:
        """Keep the mean of each label's share of the values; nothing leaves the device yet."""
        means = values.detach().float().view(len(labels), -1).mean(dim=1)
        for (first, stage), mean in zip(labels, means):
            self._noted[f"{kind}/{first}_{stage}"].append(mean)

    def record(self) -> None:
        """Put the means over the parts into the event storage, with one transfer, and forget."""
        storage = current_event_storage()
        if storage is not None and self._noted:
            parts = torch.stack([mean for means in self._noted.values() for mean in means])
            means = parts.double().view(len(self._noted), -1).mean(dim=1)
            for name, value in zip(self._noted, means.tolist()):
                is_in_every_step = name.startswith(("info_nce/", "top1/", "spread/"))
                storage.put_scalar(name, value, smoothing_hint=is_in_every_step)
        self.forget()

    def forget(self) -> None:
        """Drop what has been noted."""
        self._noted.clear()


def embedding_spread(embedding: torch.Tensor) -> torch.Tensor:
    """Compute how far unit vectors (..., N, D) spread: sqrt(D) times the deviation a dimension.

    1 for embeddings uniform on the sphere, 0 when all are the same (a collapse); NaN for N = 1.
    """
    deviation = embedding.detach().std(dim=-2)
    return deviation.mean(dim=-1) * embedding.shape[-1] ** 0.5


@torch.no_grad()
def is_among_nearest(
    query_SND: torch.Tensor, key_SND: torch.Tensor, queue_SKD: torch.Tensor, k: int
) -> torch.Tensor:
    """Tell which queries, of shape (S, N), have their positive among the k nearest of K + 1 keys.

    Walks over the queues in blocks. Chance is k / (K + 1), and all positives are when K < k.
    """
    positive_S1N = (query_SND * key_SND).sum(dim=2)[:, None]
    nearer_SN = torch.zeros_like(positive_S1N[:, 0])
    for block_SBD in queue_SKD.split(BLOCK, dim=1):
        similarity_SBN = torch.bmm(block_SBD, query_SND.transpose(1, 2))
        nearer_SN += (similarity_SBN > positive_S1N).sum(dim=1)
    return nearer_SN < k


@torch.no_grad()
def squared_distance(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Compute |q - k|^2 of unit vectors (..., D), 0 to 4: the alignment (Wang & Isola 2020)."""
    return (query - key).square().sum(dim=-1)


def uniformity(embedding: torch.Tensor) -> torch.Tensor:
    """Compute log of the mean of e^(-2 |x - y|^2) over pairs (Wang & Isola 2020, t = 2).

    Of unit vectors (..., N, D). 0 when all are the same; uniform on the sphere gives about
    -4 + 8 / D (-3.94 for D = 128). NaN for N = 1, which has no pairs.
    """
    count = embedding.shape[-2]
    # of unit vectors, |x - y|^2 = 2 - 2 x.y
    kernel = torch.exp(4 * (embedding @ embedding.transpose(-1, -2) - 1))
    total = kernel.sum(dim=(-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return (total / (count * (count - 1) or math.nan)).log()
