"""timm -> train_net.py's trainer -> timm and torchvision, with the same features on each way."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from detco_d2.data.synthetic import register_scenes
from detco_d2.engine.transfer import TransferTrainer
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import to_torchvision, write_tensors

from ..conftest import R18, load_config
from ..weights.test_export import compare, features_of, normalised, shaken
from .test_transfer import SMALL


@pytest.fixture
def photographs(scenes):
    """Two images, RGB as float64 on the scale 0..255."""
    files = sorted(Path(scenes).glob("test/**/*.jpg"))[:2]
    arrays = [np.array(Image.open(file).convert("RGB"))[:96, :96] for file in files]
    return torch.stack([torch.from_numpy(a).permute(2, 0, 1) for a in arrays]).double()


def library_features(model, images):
    with torch.no_grad():
        return features_of(model.double().eval(), normalised(images))


def detector_features(model, images):
    model = model.double().eval()
    with torch.no_grad():
        return model.backbone.bottom_up((images - model.pixel_mean) / model.pixel_std)


def test_a_file_of_timm_trains_in_a_detector_and_goes_back(scenes, tmp_path, photographs):
    torch.manual_seed(0)
    source = shaken(timm.create_model("resnet18", num_classes=7))
    path = str(tmp_path / "timm.safetensors")
    write_tensors(path, source.state_dict())
    data = ("DATASETS.TRAIN", (register_scenes(scenes, "train"),), "DATASETS.TEST", ())
    settings = [*SMALL, *R18, *data, "MODEL.WEIGHTS", path, "MODEL.ROI_HEADS.NUM_CLASSES", 4]
    cfg = load_config("demo/faster_rcnn_R_18_FPN.yaml", "OUTPUT_DIR", str(tmp_path), *settings)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=False)
    # the means on the scale of 0..255 are rounded to float32 in a detector
    found = detector_features(trainer.model, photographs)
    compare(found, library_features(source, photographs), atol=1e-6)

    trainer.model.float().train()
    trainer.train()
    expected = detector_features(trainer.model, photographs)
    backbone = read_backbone(str(tmp_path / "model_final.pth"))
    assert backbone.source == "ResNet under the names of Detectron2, behind 'backbone.bottom_up.'"
    state = to_torchvision(backbone.tensors, backbone.spec)
    assert not torch.equal(state["layer4.1.conv2.weight"], source.layer4[1].conv2.weight.float())
    for model in (timm.create_model("resnet18", num_classes=0), torchvision.models.resnet18()):
        model.fc = torch.nn.Identity()
        model.load_state_dict(state)
        compare(library_features(model, photographs), expected, atol=1e-6)
