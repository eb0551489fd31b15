"""DetCo as a Detectron2 meta-architecture: a batch of views in, a dict of losses out."""

# Shape shorthand in this module:
#   N: images of this process, B: images of all processes, Q: queues, K: queue length,
#   D: embedding dimension, S: side of a global view, p: side of a patch; with an index, S: stages

import copy
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import nn

from ..config_checks import check_detco_config
from ..families import FAMILIES, required_views
from .distributed import Shuffle, concat_all_gather, own_rows
from .encoder import Encoder, checkpoint_activations
from .losses import info_nce
from .monitors import Monitor
from .queue import KeyQueue


class DetCo(nn.Module):
    """Contrastive pretraining over several backbone stages and over global and local views.

    Equation 1 of the paper: L = sum_i w_i (L_gg^i + L_ll^i + L_gl^i), i over the stages. With one
    stage (res5) and one family (gg) it is MoCo v2.

    A training step is `begin_step`, forward and backward once or in parts, the optimiser, and
    `finish_step`; or `undo_step` in place of the last two. By itself `forward` changes nothing but
    the running statistics.

    Attributes:
        monitor: what is watched of each step.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        query_encoder: Encoder,
        families: list[str],
        stage_weights: dict[str, float],
        queue_length: int,
        embed_dim: int,
        momentum: float,
        temperature: float,
        shuffle_bn: bool,
        pixel_mean: list[float],
        pixel_std: list[float],
        checkpoint_stages: list[str] | None = None,
    ) -> None:
        """
        Args:
            query_encoder: backbone and heads; the momentum encoder starts as its copy.
            families: any of gg, ll, gl (see :data:`detco_d2.families.FAMILIES`).
            stage_weights: w_i for each stage of the encoder.
            queue_length, embed_dim, momentum, temperature: K (in images), D, m, tau.
            shuffle_bn: shuffle the key images over the processes.
            pixel_mean, pixel_std: of the three channels, on the scale 0..255.
            checkpoint_stages: see :func:`checkpoint_activations`; of the query encoder.
        """
        super().__init__()
        self.query_encoder = query_encoder
        self.key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
        checkpoint_activations(query_encoder.backbone, checkpoint_stages or [])
        # DDP wants a gradient for every trainable parameter: heads that only keys use get none.
        query_views = {FAMILIES[family][0] for family in families}
        query_encoder.global_heads.requires_grad_("global" in query_views)
        query_encoder.local_heads.requires_grad_("local" in query_views)
        self.families = families
        self.stage_weights = stage_weights
        self.views = required_views(families)
        self.key_views = sorted({FAMILIES[family][1] for family in families})
        self.queue_names = [(view, stage) for view in self.key_views for stage in stage_weights]
        self.queue = KeyQueue(len(self.queue_names), queue_length, embed_dim)
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle_bn = shuffle_bn
        # walking over modules for them takes longer than a GPU takes for the average
        self._ema_keys: list[torch.Tensor] = list(self.key_encoder.parameters())
        self._ema_queries: list[torch.Tensor] = list(query_encoder.parameters())
        self.monitor = Monitor(temperature)
        self._waiting_keys: list[torch.Tensor] | None = None  # of the parts of an open step
        self._statistics: list[list[torch.Tensor]] = []  # of both encoders, by type
        self._statistics_before: list[list[torch.Tensor]] = []  # their copies
        shape = (-1, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(shape), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_detco_config(cfg)
        node = cfg.MODEL.DETCO
        return {
            "query_encoder": Encoder(cfg),
            "families": list(node.FAMILIES),
            "stage_weights": dict(zip(node.STAGES, node.STAGE_WEIGHTS)),
            "queue_length": node.QUEUE_LENGTH,
            "embed_dim": node.EMBED_DIM,
            "momentum": node.MOMENTUM,
            "temperature": node.TEMPERATURE,
            "shuffle_bn": node.SHUFFLE_BN,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "checkpoint_stages": list(node.CHECKPOINT_STAGES),
        }

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Compute the losses of these views.

        In a step that has begun their keys wait for its end; otherwise they are dropped.

        Args:
            batch: uint8 tensors `global_query` and `global_key` of shape (N, 3, S, S),
                `local_query` and `local_key` of shape (N, 9, 3, p, p); only those that
                :attr:`views` names are read.

        Returns:
            `loss_{family}_{stage}`: w_i times the family's InfoNCE at stage i, scalars.

        Raises:
            RuntimeError: called in evaluation mode.
        """
        if not self.training:
            raise RuntimeError(
                "DetCo has no inference: its backbone goes into a detector, by MODEL.WEIGHTS of "
                "train_net.py or by tools/convert_weights.py."
            )
        device = self.pixel_mean.device
        views = {name: batch[name].to(device, non_blocking=True) for name in self.views}
        shuffle = self._shuffle(views)  # while the query encoder works
        queries = self.query_encoder(
            self.normalise(views.get("global_query")), self.normalise(views.get("local_query"))
        )
        own_keys, all_keys = self._encode_keys(views, shuffle)
        if self._waiting_keys is not None:
            self._waiting_keys.append(all_keys)
        with torch.autocast(device.type, enabled=False):
            terms = self.contrast(queries, own_keys)
        return {
            f"loss_{family}_{stage}": self.stage_weights[stage] * loss
            for (family, stage), loss in terms.items()
        }

    @torch.no_grad()
    def encode_keys(self, batch: dict[str, Any]) -> torch.Tensor:
        """The keys of all processes, of shape (Q, B, D), for the key views of such a batch."""
        names = [f"{view}_key" for view in self.key_views]
        views = {name: batch[name].to(self.pixel_mean.device) for name in names}
        return self._encode_keys(views, self._shuffle(views))[1]

    def begin_step(self) -> None:
        """Remember what a forward pass changes, the running statistics of both encoders."""
        self._waiting_keys = []
        self.monitor.forget()
        if not self._statistics:
            both = [*self.query_encoder.buffers(), *self.key_encoder.buffers()]
            types = {buffer.dtype for buffer in both}
            self._statistics = [[b for b in both if b.dtype == dtype] for dtype in types]
        with torch.no_grad():  # in one call a type, which copies by multiplying
            self._statistics_before = [
                list(torch._foreach_mul(buffers, 1)) for buffers in self._statistics
            ]

    def finish_step(self) -> None:
        """After the optimiser: the queues take the keys of all parts, the momentum encoder moves.

        What was watched is recorded: the mean over the parts, of this process.

        Raises:
            RuntimeError: no step has begun, or nothing was computed in it.
        """
        if not self._waiting_keys:
            raise RuntimeError("finish_step comes after begin_step and at least one forward.")
        self.queue.enqueue(torch.cat(self._waiting_keys, dim=1))
        self.update_momentum_encoder()
        self.monitor.record()
        self._waiting_keys = None

    def undo_step(self) -> None:
        """Put everything back to where :meth:`begin_step` found it, bit for bit.

        Raises:
            RuntimeError: no step has begun.
        """
        if self._waiting_keys is None:
            raise RuntimeError("undo_step comes after begin_step.")
        with torch.no_grad():
            for buffers, before in zip(self._statistics, self._statistics_before):
                torch._foreach_copy_(buffers, before)
        self.monitor.forget()
        self._waiting_keys = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._statistics = []  # a change of device or type replaces them
        return super()._apply(fn, recurse)

    def normalise(self, images: torch.Tensor | None) -> torch.Tensor | None:
        """Bring pixels of shape (..., 3, H, W) from 0..255 to the scale that the encoders want."""
        return None if images is None else (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def update_momentum_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q, parameters only (MoCo eq. 2)."""
        torch._foreach_lerp_(self._ema_keys, self._ema_queries, 1.0 - self.momentum)

    def _shuffle(self, views: dict[str, torch.Tensor]) -> Shuffle | None:
        """Send the key images to where their batch statistics are taken, all views as bytes."""
        if not self.shuffle_bn or comm.get_world_size() == 1:
            return None
        keys = [views[f"{view}_key"].flatten(1) for view in self.key_views]
        return Shuffle(torch.cat(keys, dim=1), seed=self.queue.count())

    @torch.no_grad()
    def _encode_keys(
        self, views: dict[str, torch.Tensor], shuffle: Shuffle | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of this process, of shape (Q, N, D), and of all processes, (Q, B, D).

        The embeddings of all queues cross the network in one gather, and are un-shuffled after it.
        """
        keys = {view: views[f"{view}_key"] for view in self.key_views}
        if shuffle:
            parts = shuffle.wait().split([key[0].numel() for key in keys.values()], dim=1)
            keys = {name: part.view_as(keys[name]) for name, part in zip(keys, parts)}
        embeddings = self.key_encoder(*(self.normalise(keys.get(v)) for v in ("global", "local")))
        all_keys = torch.stack([embeddings[name] for name in self.queue_names])
        all_keys = concat_all_gather(all_keys, dim=1)
        if shuffle:
            all_keys = shuffle.undo(all_keys, dim=1)
        return own_rows(all_keys, dim=1), all_keys

    def contrast(
        self, queries: dict[tuple[str, str], torch.Tensor], keys: torch.Tensor
    ) -> dict[tuple[str, str], torch.Tensor]:
        """Compare queries with their keys and the queues, each queue in one pass.

        Args:
            queries: of shape (N, D), by (view, stage).
            keys: of this process, of shape (Q, N, D).

        Returns:
            InfoNCE by (family, stage), scalars.
        """
        result: dict[tuple[str, str], torch.Tensor] = {}
        stages = list(self.stage_weights)
        for i, key_view in enumerate(self.key_views):
            families = [f for f in self.families if FAMILIES[f][1] == key_view]
            asking = [FAMILIES[family][0] for family in families]
            asked = [torch.cat([queries[view, stage] for view in asking]) for stage in stages]
            query_SND = torch.stack(asked)
            own = slice(i * len(stages), (i + 1) * len(stages))
            key_SND = keys[own].repeat(1, len(families), 1)
            queue_SKD = self.queue.features[own]
            loss_SN, is_nearest_SN = info_nce(query_SND, key_SND, queue_SKD, self.temperature)
            terms = [(family, stage) for stage in stages for family in families]
            result.update(zip(terms, loss_SN.view(len(terms), -1).mean(dim=1)))
            if self._waiting_keys is not None:
                self.monitor.note_terms(
                    terms, loss_SN, is_nearest_SN, query_SND, key_SND, queue_SKD
                )
        if self._waiting_keys is not None:
            self.monitor.note_views(queries)
        return result
