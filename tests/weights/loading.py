"""What tests of weights share: settings, files, a model that has loaded one, a renamed state."""

import pickle

import torch
from detectron2.modeling import build_model

from detco_d2.weights.checkpointer import BackboneCheckpointer
from detco_d2.weights.input_spec import InputSpec
from detco_d2.weights.names import TO_DETECTRON2

from ..conftest import load_config

C4 = "coco/mask_rcnn_R_50_C4_1x.yaml"
FPN = "coco/mask_rcnn_R_50_FPN_1x.yaml"
SEGMENTATION = "cityscapes/semantic_segmentation_R_50_FCN.yaml"


def save(folder, content, name="weights.pth"):
    path = folder / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return str(path)


def load_into(config, path, *settings):
    """A model that has loaded the file."""
    torch.manual_seed(0)
    cfg = load_config(config, *settings)
    model = build_model(cfg)
    BackboneCheckpointer(model, input_spec=InputSpec(cfg)).load(path, checkpointables=[])
    return model


def detectron2(state):
    """A ResNet's state of torchvision under Detectron2's names."""
    renamed = {TO_DETECTRON2.get(name): tensor for name, tensor in state.items()}
    renamed.pop(None)
    return renamed
