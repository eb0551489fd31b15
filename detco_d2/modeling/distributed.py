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


class Shuffle:
    """Deals the rows of all processes anew, in the background (MoCo, section 3.3).

    Every process holds N rows of a batch of all; afterwards it holds those N that a permutation of
    the batch gives it. One collective, in which a row crosses the network at most once.
    """

    def __init__(self, rows: torch.Tensor, seed: int) -> None:
        """
        Args:
            rows: of shape (N, ...), equal in shape and dtype on all processes.
            seed: of the permutation, which so needs no broadcast.
        """
        rank, count, world = comm.get_rank(), len(rows), comm.get_world_size()
        generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(count * world, generator=generator)
        wanted = self.order.view(world, count)  # by receiver
        sender = wanted // count
        sent = [row[source == rank] - rank * count for row, source in zip(wanted, sender)]
        received = torch.bincount(sender[rank], minlength=world).tolist()
        # rows arrive by sender, each sender's in the order of the permutation
        places = [torch.cat(sent), torch.argsort(sender[rank], stable=True), self.order.argsort()]
        # a copy that blocks would wait for all that a GPU has been given to do
        own, self.places, self.back = (p.to(rows.device, non_blocking=True) for p in places)
        self.outgoing = rows[own]  # lives as long as the transfer
        self.buffer = torch.empty_like(self.outgoing)
        counts = [len(part) for part in sent]
        self.work: Any = dist.all_to_all_single(
            self.buffer, self.outgoing, received, counts, async_op=True
        )

    def wait(self) -> torch.Tensor:
        """The rows that this process is dealt, of shape (N, ...)."""
        self.work.wait()
        result = torch.empty_like(self.buffer)
        result[self.places] = self.buffer
        return result

    def undo(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """The rows of all processes in the order of before."""
        return rows.index_select(dim, self.back)
