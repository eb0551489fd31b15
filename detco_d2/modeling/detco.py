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
from ..config import FAMILIES, check_detco_config, required_views
from .distributed import batch_permutation, concat_all_gather, own_rows
from .encoder import Encoder, ProjectionHead
from .losses import embedding_spread, info_nce
from .queue import KeyQueue


@META_ARCH_REGISTRY.register()
class DetCo(nn.Module):
    """Contrastive pretraining over several backbone stages and over global and local views.

    Equation 1 of the paper: L = sum_i w_i (L_gg^i + L_ll^i + L_gl^i), i over the stages. With one
    stage (res5) and one family (gg) it is MoCo v2.
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
    ) -> None:
        """
        Args:
            query_encoder: backbone and heads; the momentum encoder starts as its copy.
            families: any of gg, ll, gl (see :data:`detco_d2.config.FAMILIES`).
            stage_weights: w_i for each stage of the encoder.
            queue_length: K, in images.
            embed_dim: D.
            momentum: m of the momentum encoder.
            temperature: tau.
            shuffle_bn: shuffle the key images over the processes.
            pixel_mean, pixel_std: of the three channels, on the scale 0..255.
        """
        super().__init__()
        self.query_encoder = query_encoder
        self.key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
        # DDP wants a gradient for every trainable parameter: heads that only keys use get none.
        query_views = {FAMILIES[family][0] for family in families}
        query_encoder.global_heads.requires_grad_("global" in query_views)
        query_encoder.local_heads.requires_grad_("local" in query_views)
        self.families = families
        self.stage_weights = stage_weights
        self.views = required_views(families)
        key_views = sorted({FAMILIES[family][1] for family in families})
        self.queue_names = [(view, stage) for view in key_views for stage in stage_weights]
        self.queue = KeyQueue(len(self.queue_names), queue_length, embed_dim)
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle_bn = shuffle_bn
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
        }

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One training step's losses; also moves the momentum encoder and fills the queues.

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
        self._update_momentum_encoder()
        own_keys, all_keys = self._encode_keys(views)
        queries = self.query_encoder(
            self._normalise(views.get("global_query")), self._normalise(views.get("local_query"))
        )
        losses = self._compute_losses(queries, own_keys)
        self.queue.enqueue(all_keys)
        return losses

    def _normalise(self, images: torch.Tensor | None) -> torch.Tensor | None:
        return None if images is None else (images - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def _update_momentum_encoder(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q, parameters only (MoCo eq. 2)."""
        torch._foreach_lerp_(
            list(self.key_encoder.parameters()),
            list(self.query_encoder.parameters()),
            1.0 - self.momentum,
        )

    @torch.no_grad()
    def _encode_keys(
        self, views: dict[str, torch.Tensor]
    ) -> tuple[dict[tuple[str, str], torch.Tensor], torch.Tensor]:
        """Keys of this process by queue, each (N, D), and of all processes, (Q, B, D).

        An image's global view and its nine patches are shuffled together. The embeddings of all
        queues cross the network in one gather, and are un-shuffled after it.
        """
        inputs = [views.get("global_key"), views.get("local_key")]
        shuffle = self.shuffle_bn and comm.get_world_size() > 1
        if shuffle:
            gathered = [None if view is None else concat_all_gather(view) for view in inputs]
            size = next(len(view) for view in gathered if view is not None)
            order = batch_permutation(size, seed=int(self.queue.num_enqueued))
            mine = own_rows(order).to(self.pixel_mean.device)
            inputs = [None if view is None else view[mine] for view in gathered]
        embeddings = self.key_encoder(*(self._normalise(view) for view in inputs))
        keys = torch.stack([embeddings[name] for name in self.queue_names])
        keys = concat_all_gather(keys, dim=1)
        if shuffle:
            keys = keys[:, torch.argsort(order).to(keys.device)]
        return dict(zip(self.queue_names, own_rows(keys, dim=1))), keys

    def _compute_losses(
        self,
        queries: dict[tuple[str, str], torch.Tensor],
        keys: dict[tuple[str, str], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        # The queue changes in place before backward, which still needs these negatives.
        queue = dict(zip(self.queue_names, self.queue.features.clone()))
        losses, watched = {}, {}
        with torch.autocast(self.pixel_mean.device.type, enabled=False):
            for family in self.families:
                query_view, key_view = FAMILIES[family]
                for stage, weight in self.stage_weights.items():
                    loss, top1 = info_nce(
                        queries[query_view, stage],
                        keys[key_view, stage],
                        queue[key_view, stage],
                        self.temperature,
                    )
                    losses[f"loss_{family}_{stage}"] = weight * loss
                    watched[f"info_nce/{family}_{stage}"] = loss.detach()
                    watched[f"top1/{family}_{stage}"] = top1
            for (view, stage), embedding in queries.items():
                watched[f"spread/{view}_{stage}"] = embedding_spread(embedding)
        self._record(watched)
        return losses

    def _record(self, watched: dict[str, torch.Tensor]) -> None:
        """Put scalars into the event storage, with one transfer from the device."""
        storage = current_event_storage()
        if storage is None:
            return
        values = torch.stack([value.float() for value in watched.values()]).tolist()
        storage.put_scalars(**dict(zip(watched, values)))


def _without_idle_stages(cfg: CfgNode) -> CfgNode:
    """Let a ResNet end at the deepest stage under contrast; DDP refuses layers that idle."""
    outputs = [name for name in cfg.MODEL.RESNETS.OUT_FEATURES if name in cfg.MODEL.DETCO.STAGES]
    cfg = cfg.clone()
    cfg.defrost()
    if outputs:
        cfg.MODEL.RESNETS.OUT_FEATURES = outputs
    return cfg
