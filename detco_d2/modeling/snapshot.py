"""Copies of buffers, from which a step that does not count is undone."""

import torch
from torch import nn


class BufferSnapshot:
    """Keeps the values that the buffers of some modules had at a moment.

    It is bound to these tensors: a module that moves to another device or type needs a new one.
    """

    def __init__(self, *modules: nn.Module) -> None:
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for module in modules:
            for buffer in module.buffers():
                by_type.setdefault(buffer.dtype, []).append(buffer)
        self._groups = list(by_type.values())
        self._kept = [[torch.empty_like(buffer) for buffer in group] for group in self._groups]

    @torch.no_grad()
    def take(self) -> None:
        """Remember all values, in one call for each type of number."""
        for kept, group in zip(self._kept, self._groups):
            torch._foreach_copy_(kept, group)

    @torch.no_grad()
    def restore(self) -> None:
        """Put all values back, bit for bit."""
        for kept, group in zip(self._kept, self._groups):
            torch._foreach_copy_(group, kept)
