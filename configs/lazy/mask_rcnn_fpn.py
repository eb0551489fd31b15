"""Detectron2's own Mask R-CNN with FPN, from a converted backbone (main branch only).

python tools/convert_weights.py --input output/mine/model_final.pth --output mine_R_50.pth
python tools/lazyconfig_train_net.py --config-file configs/lazy/mask_rcnn_fpn.py --num-gpus 8 \
    train.init_checkpoint=mine_R_50.pth

The second tool is from Detectron2's repository. It neither compares the input settings with those
in the file nor checks that every tensor loads; train_net.py does.
"""

from detectron2.model_zoo import get_config

dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train
model = get_config("common/models/mask_rcnn_fpn.py").model

# What the protocols of configs/coco share: nothing frozen, SyncBN, the input of the weights.
bottom_up = model.backbone.bottom_up
bottom_up.freeze_at = 0
bottom_up.stem.norm = bottom_up.stages.norm = model.backbone.norm = "SyncBN"
bottom_up.stages.stride_in_1x1 = False
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = dataloader.train.mapper.image_format = "RGB"
train.output_dir = "output/coco/mask_rcnn_R_50_FPN_1x_lazy"
train.init_checkpoint = "mine_R_50.pth"
