"""The plain formulas that the fast code of the package is proved, and timed, against."""

from typing import Any

import torch
import torch.nn.functional as F

from detco_d2.families import FAMILIES
from detco_d2.modeling.detco import DetCo


def info_nce(
    query_ND: torch.Tensor, key_ND: torch.Tensor, queue_KD: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE by concatenated logits, the mean over queries; and the share of top-1 hits."""
    positive_N1 = (query_ND * key_ND).sum(dim=1, keepdim=True)
    logits = torch.cat([positive_N1, query_ND @ queue_KD.T], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    top1 = (logits.detach().argmax(dim=1) == 0).to(logits.dtype).mean()
    return F.cross_entropy(logits, target), top1


class PlainDetCo(DetCo):
    """A DetCo whose losses, moving average and memory format are the plain ones."""

    def contrast(
        self, queries: dict[tuple[str, str], torch.Tensor], keys: torch.Tensor
    ) -> dict[tuple[str, str], torch.Tensor]:
        # the queue changes in place, perhaps before a backward pass, which reads these negatives
        queues, result = self.queue.features.clone(), {}
        for family, (query_view, key_view) in FAMILIES.items():
            for stage in self.stage_weights if family in self.families else ():
                i = self.queue_names.index((key_view, stage))
                query = queries[query_view, stage]
                result[family, stage] = info_nce(query, keys[i], queues[i], self.temperature)[0]
        return result

    @torch.no_grad()
    def update_momentum_encoder(self) -> None:
        pairs = zip(self.key_encoder.parameters(), self.query_encoder.parameters())
        for key, query in pairs:
            key.copy_(key * self.momentum + query * (1.0 - self.momentum))


def make_plain(model: Any) -> Any:
    """Turn a DetCo, in place, into a :class:`PlainDetCo`."""
    model.__class__ = PlainDetCo
    for encoder in (model.query_encoder, model.key_encoder):
        encoder.memory_format = torch.contiguous_format
        encoder.to(memory_format=torch.contiguous_format)
    return model


def make_plain_sgd(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let torch's SGD go over the parameters one by one."""
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    return optimizer
