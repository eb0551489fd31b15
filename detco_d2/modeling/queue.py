"""The queues of negative keys, one for each stage and view (paper section 3.2)."""

import torch
import torch.nn.functional as F
from torch import nn

# Any constant does: what matters is that every process starts from the same one.
_INIT_SEED = 20210204


class KeyQueue(nn.Module):
    """Q ring buffers of the newest K keys, filled together.

    They start as the same random unit vectors in every process, whatever the process's seed, and
    stay equal as long as every process enqueues the same (gathered) keys.

    Attributes:
        features: of shape (Q, K, D), float32.
        num_enqueued: number of keys that each queue has taken since the start, of shape ().
    """

    features: torch.Tensor
    num_enqueued: torch.Tensor

    def __init__(self, num_queues: int, length: int, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_INIT_SEED)
        features = torch.randn(num_queues, length, dim, generator=generator, dtype=torch.float32)
        self.register_buffer("features", F.normalize(features, dim=2))
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.long))
        self._count: int | None = 0  # the same on the host, None where only the buffer has it
        self.register_load_state_dict_post_hook(KeyQueue._forget)

    def count(self) -> int:
        """`num_enqueued` as a number, for which the host waits only after it has been loaded."""
        if self._count is None:
            self._count = int(self.num_enqueued)
        return self._count

    def _forget(self, *_: object) -> None:
        self._count = None

    @torch.no_grad()
    def enqueue(self, keys_QBD: torch.Tensor) -> None:
        """Overwrite the oldest B keys of each queue; wraps around at the end.

        Args:
            keys_QBD: the keys of B images for the Q queues, of shape (Q, B, D). Of more than K
                keys only the newest K are kept.
        """
        length = self.features.shape[1]
        newest_QBD = keys_QBD[:, -length:].to(self.features.dtype)
        self.num_enqueued += keys_QBD.shape[1]
        # computed on the device: reading the counter here would stall a GPU
        ages = torch.arange(newest_QBD.shape[1], 0, -1, device=self.features.device)
        self.features[:, (self.num_enqueued - ages) % length] = newest_QBD
        if self._count is not None:
            self._count += keys_QBD.shape[1]
