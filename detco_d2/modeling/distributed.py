"""Gathering over processes and the batch shuffle of MoCo; both do nothing for one process."""

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm


@torch.no_grad()
def concat_all_gather(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Concatenate a tensor of equal shape from every process, by rank; no gradient flows back."""
    if comm.get_world_size() == 1:
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered, dim=dim)


def own_rows(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """This process's part of a tensor that :func:`concat_all_gather` made."""
    return tensor.chunk(comm.get_world_size(), dim=dim)[comm.get_rank()]


def batch_permutation(size: int, seed: int) -> torch.Tensor:
    """A permutation of 0..size-1 that depends on the seed alone, so it needs no broadcast."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


class RowExchange:
    """Moves rows between processes in the background, each row to the one process that wants it.

    Every process holds N rows of a batch of all; afterwards it holds those N that `order` gives
    it. One collective, in which a row crosses the network at most once.
    """

    def __init__(self, rows: torch.Tensor, order: torch.Tensor) -> None:
        """
        Args:
            rows: of shape (N, ...), equal in shape and dtype on all processes.
            order: a permutation of all rows; this process gets its :func:`own_rows`.
        """
        rank, count = comm.get_rank(), len(rows)
        wanted = order.view(-1, count)  # by receiver
        sender = wanted // count
        sent = [row[source == rank] - rank * count for row, source in zip(wanted, sender)]
        received = torch.bincount(sender[rank], minlength=len(wanted)).tolist()
        # rows arrive by sender, each sender's in the order of the permutation
        self.places = torch.argsort(sender[rank], stable=True).to(rows.device)
        self.outgoing = rows[torch.cat(sent).to(rows.device)]  # lives as long as the transfer
        self.buffer = torch.empty_like(self.outgoing)
        counts = [len(part) for part in sent]
        self.work: Any = dist.all_to_all_single(
            self.buffer, self.outgoing, received, counts, async_op=True
        )

    def wait(self) -> torch.Tensor:
        """The rows of this process, of shape (N, ...)."""
        self.work.wait()
        result = torch.empty_like(self.buffer)
        result[self.places] = self.buffer
        return result
