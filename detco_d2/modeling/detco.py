"""DetCo as a Detectron2 meta-architecture: a batch of views in, a dict of losses out."""

# Shape shorthand in this module:
#   N: images of this process, B: images of all processes, Q: queues, K: queue length,
#   D: embedding dimension, S: side of a global view, p: side of a patch

import copy
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.utils import comm
from torch import nn

from ..compat import current_event_storage
from ..config_checks import check_detco_config
from ..families import FAMILIES, required_views
from .distributed import RowExchange, batch_permutation, concat_all_gather, own_rows
from .encoder import Encoder, ProjectionHead, checkpoint_activations
from .losses import MIN_FUSED_TEMPERATURE, fused_info_nce, info_nce
from .monitors import alignment, embedding_spread, top_k_accuracy, uniformity
from .queue import KeyQueue


@META_ARCH_REGISTRY.register()
class DetCo(nn.Module):
    """Contrastive pretraining over several backbone stages and over global and local views.

    Equation 1 of the paper: L = sum_i w_i (L_gg^i + L_ll^i + L_gl^i), i over the stages. With one
    stage (res5) and one family (gg) it is MoCo v2.

    Attributes:
        watch_closely: also record, of the next steps, what takes time to compute: top-5,
            alignment and uniformity. Changes nothing that is learnt.
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
        fused_loss: bool = True,
        fused_ema: bool = True,
        checkpoint_stages: list[str] | None = None,
    ) -> None:
        """
        Args:
            query_encoder: backbone and heads; the momentum encoder starts as its copy.
            families: any of gg, ll, gl (see :data:`detco_d2.families.FAMILIES`).
            stage_weights: w_i for each stage of the encoder.
            queue_length: K, in images.
            embed_dim: D.
            momentum: m of the momentum encoder.
            temperature: tau.
            shuffle_bn: shuffle the key images over the processes.
            pixel_mean, pixel_std: of the three channels, on the scale 0..255.
            fused_loss, fused_ema: off, the same numbers come from the plain formulas.
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
        self.fused_loss = fused_loss and temperature >= MIN_FUSED_TEMPERATURE
        self.fused_ema = fused_ema
        # walking over modules for them takes longer than a GPU takes for the average
        self._ema_keys: list[torch.Tensor] = list(self.key_encoder.parameters())
        self._ema_queries: list[torch.Tensor] = list(query_encoder.parameters())
        self.watch_closely = False
        self._waiting_keys: list[torch.Tensor] = []
        self._watched: list[tuple[list[str], torch.Tensor]] = []
        self._statistics: list[list[torch.Tensor]] = []
        self._kept_statistics: list[list[torch.Tensor]] = []
        shape = (-1, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(shape), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_detco_config(cfg)
        node = cfg.MODEL.DETCO
        backbone = build_backbone(_without_idle_stages(cfg))
        shapes = backbone.output_shape()
        missing = [stage for stage in node.STAGES if stage not in shapes]
        if missing:
            raise ValueError(
                f"MODEL.DETCO.STAGES asks for {missing}, but the backbone gives {list(shapes)}; "
                "for a ResNet set MODEL.RESNETS.OUT_FEATURES to at least MODEL.DETCO.STAGES."
            )

        def heads(hidden_dims: list[int], vectors: int) -> dict[str, ProjectionHead]:
            result = {}
            for i, stage in enumerate(node.STAGES):
                channels = shapes[stage].channels
                hidden = hidden_dims[i] if hidden_dims else channels
                result[stage] = ProjectionHead(
                    vectors * channels, hidden, node.EMBED_DIM, node.HEAD_NORM
                )
            return result

        views = required_views(node.FAMILIES)
        has_global = any(view.startswith("global") for view in views)
        has_local = any(view.startswith("local") for view in views)
        encoder = Encoder(
            backbone,
            list(node.STAGES),
            heads(node.GLOBAL_HIDDEN_DIMS, 1) if has_global else {},
            heads(node.LOCAL_HIDDEN_DIMS, 9) if has_local else {},
            channels_last=node.CHANNELS_LAST,
        )
        return {
            "query_encoder": encoder,
            "families": list(node.FAMILIES),
            "stage_weights": dict(zip(node.STAGES, node.STAGE_WEIGHTS)),
            "queue_length": node.QUEUE_LENGTH,
            "embed_dim": node.EMBED_DIM,
            "momentum": node.MOMENTUM,
            "temperature": node.TEMPERATURE,
            "shuffle_bn": node.SHUFFLE_BN,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "fused_loss": node.FUSED_LOSS,
            "fused_ema": node.FUSED_EMA,
            "checkpoint_stages": list(node.CHECKPOINT_STAGES),
        }

    def forward(self, batch: dict[str, Any], is_whole_step: bool = True) -> dict[str, torch.Tensor]:
        """The losses of one training step, or of a part of one.

        By itself a call is a whole step: the momentum encoder moves first, and the queues take the
        keys last, whatever comes out. A trainer that cuts a batch into parts, or looks at a step
        before it counts, says so and calls :meth:`begin_step`, and then :meth:`finish_step` or
        :meth:`undo_step`.

        Args:
            batch: uint8 tensors `global_query` and `global_key` of shape (N, 3, S, S),
                `local_query` and `local_key` of shape (N, 9, 3, p, p); only those that
                :attr:`views` names are read.
            is_whole_step: otherwise momentum encoder and queues are left alone.

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
        if is_whole_step:
            self._update_momentum_encoder()
        order, exchange = self._start_shuffle(views)
        queries = self.query_encoder(
            self._normalise(views.get("global_query")), self._normalise(views.get("local_query"))
        )
        own_keys, all_keys = self._encode_keys(views, order, exchange)
        losses = self._compute_losses(queries, own_keys)
        if is_whole_step:
            self.queue.enqueue(all_keys)
            self._record()
        else:
            self._waiting_keys.append(all_keys)
        return losses

    @torch.no_grad()
    def begin_step(self) -> None:
        """Remember what a forward pass changes, the running statistics of both encoders."""
        self._forget_parts()
        if not self._statistics:
            by_type: dict[torch.dtype, list[torch.Tensor]] = {}
            for encoder in (self.query_encoder, self.key_encoder):
                for buffer in encoder.buffers():
                    by_type.setdefault(buffer.dtype, []).append(buffer)
            self._statistics = list(by_type.values())
            self._kept_statistics = [
                [torch.empty_like(buffer) for buffer in group] for group in self._statistics
            ]
        for kept, group in zip(self._kept_statistics, self._statistics):
            torch._foreach_copy_(kept, group)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the optimiser: the queues take the keys of all parts, the momentum encoder moves.

        The next step then meets what it would have met, had the average come first in it. What
        was watched is recorded: the mean over the parts, of this process.
        """
        self.queue.enqueue(torch.cat(self._waiting_keys, dim=1))
        self._update_momentum_encoder()
        self._record()
        self._forget_parts()

    @torch.no_grad()
    def undo_step(self) -> None:
        """Put everything back to where :meth:`begin_step` found it, bit for bit."""
        self._forget_parts()
        for kept, group in zip(self._kept_statistics, self._statistics):
            torch._foreach_copy_(group, kept)

    def _forget_parts(self) -> None:
        self._waiting_keys.clear()
        self._watched.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._statistics = []  # a change of device or type replaces buffers
        return super()._apply(fn, recurse)

    def _normalise(self, images: torch.Tensor | None) -> torch.Tensor | None:
        return None if images is None else (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def _update_momentum_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q, parameters only (MoCo eq. 2)."""
        if self.fused_ema:
            torch._foreach_lerp_(self._ema_keys, self._ema_queries, 1.0 - self.momentum)
            return
        for key, query in zip(self._ema_keys, self._ema_queries):
            key.copy_(key * self.momentum + query * (1.0 - self.momentum))

    def _start_shuffle(
        self, views: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, RowExchange | None]:
        """Send the key images to where their batch statistics are taken (MoCo, 3.3).

        An image's global view and its nine patches travel together, as the bytes that they are,
        while the query encoder works.
        """
        if not self.shuffle_bn or comm.get_world_size() == 1:
            return None, None
        keys = [views[f"{view}_key"] for view in self.key_views]
        size = len(keys[0]) * comm.get_world_size()
        order = batch_permutation(size, seed=int(self.queue.num_enqueued))
        return order, RowExchange(torch.cat([view.flatten(1) for view in keys], dim=1), order)

    @torch.no_grad()
    def _encode_keys(
        self,
        views: dict[str, torch.Tensor],
        order: torch.Tensor | None,
        exchange: RowExchange | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of this process, of shape (Q, N, D), and of all processes, (Q, B, D).

        The embeddings of all queues cross the network in one gather, and are un-shuffled after it.
        """
        keys = {view: views[f"{view}_key"] for view in self.key_views}
        if exchange is not None:
            sizes = [key[0].numel() for key in keys.values()]
            parts = exchange.wait().split(sizes, dim=1)
            keys = {name: part.view_as(keys[name]) for name, part in zip(keys, parts)}
        embeddings = self.key_encoder(*(self._normalise(keys.get(v)) for v in ("global", "local")))
        all_keys = torch.stack([embeddings[name] for name in self.queue_names])
        all_keys = concat_all_gather(all_keys, dim=1)
        if order is not None:
            all_keys = all_keys[:, torch.argsort(order).to(all_keys.device)]
        return own_rows(all_keys, dim=1), all_keys

    def _compute_losses(
        self, queries: dict[tuple[str, str], torch.Tensor], keys: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        compute = self._fused_losses if self.fused_loss else self._plain_losses
        with torch.autocast(self.pixel_mean.device.type, enabled=False):
            names, info_nces, top1s = compute(queries, keys)
            self._watch(names, queries, keys, info_nces, top1s)
        return {
            f"loss_{family}_{stage}": self.stage_weights[stage] * loss
            for (family, stage), loss in zip(names, info_nces)
        }

    def _fused_losses(
        self, queries: dict[tuple[str, str], torch.Tensor], keys: torch.Tensor
    ) -> tuple[list[tuple[str, str]], torch.Tensor, torch.Tensor]:
        """The families and stages, with their InfoNCE and top-1 share, in one pass a queue."""
        names, losses, top1s = [], [], []
        count = len(self.stage_weights)
        for i, key_view in enumerate(self.key_views):
            families = [f for f in self.families if FAMILIES[f][1] == key_view]
            query_SND = torch.stack(
                [
                    torch.cat([queries[FAMILIES[family][0], stage] for family in families])
                    for stage in self.stage_weights
                ]
            )
            queues = slice(i * count, (i + 1) * count)
            key_SND = keys[queues].repeat(1, len(families), 1)
            loss, nearest = fused_info_nce(
                query_SND, key_SND, self.queue.features[queues], self.temperature
            )
            by_family = (count, len(families), -1)
            losses.append(loss.view(by_family).mean(dim=2).flatten())
            top1s.append(nearest.view(by_family).to(loss.dtype).mean(dim=2).flatten())
            names += [(family, stage) for stage in self.stage_weights for family in families]
        return names, torch.cat(losses), torch.cat(top1s)

    def _plain_losses(
        self, queries: dict[tuple[str, str], torch.Tensor], keys: torch.Tensor
    ) -> tuple[list[tuple[str, str]], torch.Tensor, torch.Tensor]:
        """The same by concatenated logits, a term at a time."""
        # The queue changes in place before backward, which still needs these negatives.
        queues = self.queue.features.clone()
        names = [(family, stage) for family in self.families for stage in self.stage_weights]
        results = []
        for family, stage in names:
            query_view, key_view = FAMILIES[family]
            i = self.queue_names.index((key_view, stage))
            results.append(
                info_nce(queries[query_view, stage], keys[i], queues[i], self.temperature)
            )
        losses, top1s = zip(*results)
        return names, torch.stack(losses), torch.stack(top1s)

    @torch.no_grad()
    def _watch(
        self,
        terms: list[tuple[str, str]],
        queries: dict[tuple[str, str], torch.Tensor],
        keys: torch.Tensor,
        info_nces: torch.Tensor,
        top1s: torch.Tensor,
    ) -> None:
        """Note the health of each term and of each view's embeddings; no transfer yet."""
        by_term = {"info_nce": info_nces.detach(), "top1": top1s}
        embeddings = torch.stack(list(queries.values()))
        by_view = {"spread": embedding_spread(embeddings)}
        if self.watch_closely:
            asked = [queries[FAMILIES[family][0], stage] for family, stage in terms]
            owners = [self.queue_names.index((FAMILIES[f][1], stage)) for f, stage in terms]
            by_term["alignment"] = alignment(torch.stack(asked), keys[owners])
            by_term["top5"] = torch.stack(
                [
                    top_k_accuracy(query, keys[i], self.queue.features[i], 5)
                    for query, i in zip(asked, owners)
                ]
            )
            by_view["uniformity"] = uniformity(embeddings)
        groups = ((terms, by_term), (list(queries), by_view))
        names = [
            f"{kind}/{first}_{stage}"
            for labels, values in groups
            for kind in values
            for first, stage in labels
        ]
        self._watched.append((names, torch.cat([*by_term.values(), *by_view.values()])))

    def _record(self) -> None:
        """Put the mean over the parts into the event storage, with one transfer from the device."""
        storage = current_event_storage()
        if storage is not None and self._watched:
            values = torch.stack([part for _, part in self._watched]).mean(dim=0)
            for name, value in zip(self._watched[0][0], values.tolist()):
                is_in_every_step = name.startswith(("info_nce/", "top1/", "spread/"))
                storage.put_scalar(name, value, smoothing_hint=is_in_every_step)
        self._watched.clear()


def _without_idle_stages(cfg: CfgNode) -> CfgNode:
    """Let a ResNet end at the deepest stage under contrast; DDP refuses layers that idle."""
    outputs = [name for name in cfg.MODEL.RESNETS.OUT_FEATURES if name in cfg.MODEL.DETCO.STAGES]
    cfg = cfg.clone()
    cfg.defrost()
    if outputs:
        cfg.MODEL.RESNETS.OUT_FEATURES = outputs
    return cfg
