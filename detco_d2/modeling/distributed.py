"""Gathering over processes and the batch shuffle of MoCo; both do nothing for one process."""

import torch
import torch.distributed as dist
from detectron2.utils import comm


@torch.no_grad()
def concat_all_gather(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Concatenate a tensor of equal shape from every process, in the order of ranks.

    Args:
        tensor: of any shape and dtype; gradients do not flow back.
        dim: dimension to concatenate along.
    """
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
