"""One encoder: a backbone with a global and a local MLP head at each stage (paper section 3)."""

# Shape shorthand in this module:
#   N: images, C: channels of a stage, D: embedding dimension, p: patch side

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import build_backbone
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..families import required_views

_HEAD_NORMS = {
    "": nn.Identity,
    "BN": nn.BatchNorm1d,
    "SyncBN": nn.SyncBatchNorm,
    "LN": nn.LayerNorm,
}


class ProjectionHead(nn.Module):
    """Linear - (norm: "", "BN", "SyncBN" or "LN") - ReLU - Linear, then L2 normalisation."""

    def __init__(self, in_channels: int, hidden_dim: int, embed_dim: int, norm: str = "") -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.norm = _HEAD_NORMS[norm](hidden_dim)
        self.out = nn.Linear(hidden_dim, embed_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, in_channels) -> unit vectors of shape (N, D), at least in float32."""
        embedding = self.out(F.relu(self.norm(self.hidden(features))))
        return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)


class Encoder(nn.Module):
    """Backbone and heads; one instance is the query encoder, its copy the momentum encoder."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        stages: list[str],
        global_heads: dict[str, ProjectionHead],
        local_heads: dict[str, ProjectionHead],
    ) -> None:
        """
        Args:
            backbone: maps (N, 3, H, W) to a dict of stage outputs.
            global_heads, local_heads: of C and of 9C inputs; empty when no family reads them.
        """
        super().__init__()
        self.memory_format = torch.channels_last  # the same numbers, faster convolutions
        self.backbone = backbone.to(memory_format=self.memory_format)
        self.stages = stages
        self.global_heads = nn.ModuleDict(global_heads)
        self.local_heads = nn.ModuleDict(local_heads)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """
        Raises:
            ValueError: the backbone lacks a stage that is asked for.
        """
        node, cfg = cfg.MODEL.DETCO, cfg.clone()
        cfg.defrost()
        # a ResNet ends at the deepest stage under contrast, since DDP refuses layers that idle;
        # where none is left, the backbone says which it has
        stages = cfg.MODEL.RESNETS.OUT_FEATURES
        cfg.MODEL.RESNETS.OUT_FEATURES = [s for s in stages if s in node.STAGES] or stages
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        if missing := [stage for stage in node.STAGES if stage not in shapes]:
            raise ValueError(
                f"MODEL.DETCO.STAGES asks for {missing}, but the backbone gives {list(shapes)}; "
                "for a ResNet set MODEL.RESNETS.OUT_FEATURES to at least MODEL.DETCO.STAGES."
            )

        def heads(hidden_dims: list[int], vectors: int) -> dict[str, ProjectionHead]:
            channels = [shapes[stage].channels for stage in node.STAGES]
            return {
                stage: ProjectionHead(vectors * width, hidden, node.EMBED_DIM, node.HEAD_NORM)
                for stage, width, hidden in zip(node.STAGES, channels, hidden_dims or channels)
            }

        views = {view.partition("_")[0] for view in required_views(node.FAMILIES)}
        return {
            "backbone": backbone,
            "stages": list(node.STAGES),
            "global_heads": heads(node.GLOBAL_HIDDEN_DIMS, 1) if "global" in views else {},
            "local_heads": heads(node.LOCAL_HIDDEN_DIMS, 9) if "local" in views else {},
        }

    def forward(
        self, global_images: torch.Tensor | None, local_patches: torch.Tensor | None
    ) -> dict[tuple[str, str], torch.Tensor]:
        """
        Args:
            global_images: of shape (N, 3, H, W), or None to skip.
            local_patches: of shape (N, 9, 3, p, p), or None to skip.

        Returns:
            unit vectors of shape (N, D), keyed by ("global" or "local", stage).
        """
        embeddings = {}
        for kind, images, heads in (
            ("global", global_images, self.global_heads),
            ("local", local_patches, self.local_heads),
        ):
            if images is None:
                continue
            pixels = images.flatten(0, -4).contiguous(memory_format=self.memory_format)
            features = self.backbone(pixels)
            for stage in self.stages:
                # image-major, so a row of patches is the concatenation of an image's nine vectors
                pooled = features[stage].mean(dim=(2, 3)).reshape(len(images), -1)
                embeddings[kind, stage] = heads[stage](pooled)
        return embeddings


def checkpoint_activations(backbone: nn.Module, stages: list[str]) -> None:
    """Let children of a backbone (stem, res2, ...) drop their activations, and compute them again.

    Costs a second forward pass of those stages; losses, gradients and running statistics stay the
    same.

    Raises:
        ValueError: no such child.
    """
    children = dict(backbone.named_children())
    if unknown := [name for name in stages if name not in children]:
        raise ValueError(
            f"MODEL.DETCO.CHECKPOINT_STAGES names {unknown}; the backbone has {list(children)}."
        )
    for name in stages:
        # bound again by a deepcopy, which a closure would not be
        stage: Any = children[name]
        stage.forward = types.MethodType(_checkpointed_forward, stage)


def _checkpointed_forward(stage: Any, images: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return type(stage).forward(stage, images)
    return checkpoint(
        type(stage).forward,
        stage,
        images,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _norms_left_alone(stage)),
    )


@contextlib.contextmanager
def _norms_left_alone(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a batch twice: the second pass leaves their statistics."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, old in zip(module.buffers(), before):
            buffer.data.copy_(old)  # unseen by autograd, which holds them for the backward pass
