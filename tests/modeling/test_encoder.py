"""Backbone and heads."""

import torch
from detectron2.modeling import build_model

from ..conftest import R18, make_batch, tiny_config


def test_local_embedding_is_the_head_of_the_nine_concatenated_vectors():
    """Paper 3.3: features of the nine patches are pooled, concatenated, and go into one MLP."""
    model = build_model(tiny_config()).double().eval()
    patches = model.normalise(make_batch()["local_query"])
    encoder = model.query_encoder
    result = encoder(None, patches)
    for stage in encoder.stages:
        vectors = [
            [encoder.backbone(patch[None])[stage].mean(dim=(2, 3))[0] for patch in image]
            for image in patches
        ]
        joined = torch.stack([torch.cat(nine) for nine in vectors])
        assert torch.allclose(result["local", stage], encoder.local_heads[stage](joined), rtol=1e-9)


def test_heads_have_the_widths_of_moco_v2_at_each_stage():
    model = build_model(tiny_config(*R18, "MODEL.DETCO.EMBED_DIM", 128))
    for stage, channels in zip(("res2", "res3", "res4", "res5"), (64, 128, 256, 512)):
        head = model.query_encoder.global_heads[stage]
        assert (head.hidden.in_features, head.hidden.out_features) == (channels, channels)
        assert head.out.out_features == 128
        assert model.query_encoder.local_heads[stage].hidden.in_features == 9 * channels
        assert isinstance(head.norm, torch.nn.Identity)  # no norm, as in the paper
        assert torch.allclose(head(torch.randn(7, channels)).norm(dim=1), torch.ones(7))


def test_hidden_widths_and_norm_are_config_keys():
    cfg = tiny_config("MODEL.DETCO.HEAD_NORM", "BN")
    cfg.MODEL.DETCO.GLOBAL_HIDDEN_DIMS = [8, 9, 10, 11]
    cfg.MODEL.DETCO.LOCAL_HIDDEN_DIMS = [12, 13, 14, 15]
    encoder = build_model(cfg).query_encoder
    assert [h.hidden.out_features for h in encoder.global_heads.values()] == [8, 9, 10, 11]
    assert [h.hidden.out_features for h in encoder.local_heads.values()] == [12, 13, 14, 15]
    assert isinstance(encoder.local_heads["res5"].norm, torch.nn.BatchNorm1d)
