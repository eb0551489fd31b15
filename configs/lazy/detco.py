"""DetCo for those who use Detectron2's Python configs: the model and data of configs/detco.yaml.

python tools/lazyconfig_train_net.py --config-file configs/lazy/detco.py --num-gpus 8 \
    dataloader.train.images.images.names='["/my/photos"]' train.output_dir=output/mine

with the tool of that name from Detectron2's repository; see docs/python.md for what
pretrain_net.py does besides.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from detco_d2.data.datasets import load_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import build_pretrain_loader, pack_images
from detco_d2.modeling.detco import DetCo
from detco_d2.modeling.encoder import Encoder, ProjectionHead

channels = {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
mean, std = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]  # RGB, of 0..255


def heads(vectors):
    """A head a stage, which reads so many concatenated vectors of the stage's width."""
    return L("builtins.dict")(
        **{
            stage: L(ProjectionHead)(in_channels=vectors * width, hidden_dim=width, embed_dim=128)
            for stage, width in channels.items()
        }
    )


def view(size, scale):
    # by name, since omegaconf has plans of its own for dataclasses, as it has for dict
    return L("detco_d2.data.views.ViewSettings")(
        size=size,
        scale=scale,
        flip_prob=0.5,
        color_jitter=[0.4, 0.4, 0.4, 0.1],
        color_jitter_prob=0.8,
        grayscale_prob=0.2,
        blur_prob=0.5,
        blur_sigma=[0.1, 2.0],
    )


model = L(DetCo)(
    query_encoder=L(Encoder)(
        backbone=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="BN"),
            out_features=list(channels),
        ),
        stages=list(channels),
        global_heads=heads(1),
        local_heads=heads(9),
        channels_last=True,
    ),
    families=["gg", "ll", "gl"],
    stage_weights=L("builtins.dict")(res2=0.1, res3=0.4, res4=0.7, res5=1.0),
    queue_length=65536,
    embed_dim=128,
    momentum=0.999,
    temperature=0.2,
    shuffle_bn=True,
    pixel_mean=mean,
    pixel_std=std,
)

dataloader = dict(
    train=L(build_pretrain_loader)(
        images=L(pack_images)(images=L(load_images)(names=["imagenet_train"])),
        mapper=L(DetCoDatasetMapper)(
            views=["global_query", "global_key", "local_query", "local_key"],
            global_settings=view(224, [0.2, 1.0]),
            local_settings=view(255, [0.6, 1.0]),
            patch_size=64,
            image_format="RGB",
            augmentation="fast",
            min_side=16,
            max_pixels=89478485,
        ),
        total_batch_size=256,
        num_workers=8,
        seed=0,
        pin_memory=True,
    )
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=1e-4),
    lr=0.03,
    momentum=0.9,
    weight_decay=1e-4,
)
lr_multiplier = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)

train = dict(
    output_dir="output/detco",
    init_checkpoint="",
    max_iter=1000800,  # 200 epochs x (1,281,167 images // 256)
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5004, max_to_keep=3),
    eval_period=0,
    log_period=20,
    device="cuda",
    seed=0,
)
