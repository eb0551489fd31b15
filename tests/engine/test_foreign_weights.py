"""timm -> train_net.py's trainer -> timm and torchvision, with the same features on each way."""

import os

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
from .test_transfer import SMALL

STAGES = ("res2", "res3", "res4", "res5")


@pytest.fixture
def photographs(scenes):
    """Two images, RGB as float64 on the scale 0..255: real ones where there are some."""
    folder = os.path.join(os.environ.get("DETECTRON2_DATASETS", ""), "coco", "val2017")
    if not os.path.isdir(folder):
        folder = os.path.join(scenes, "test", "images")
        folder = folder if os.path.isdir(folder) else os.path.join(scenes, "test")
    names = sorted(n for n in os.listdir(folder) if n.endswith((".jpg", ".png")))[:2]
    arrays = [np.array(Image.open(os.path.join(folder, n)).convert("RGB")) for n in names]
    return torch.stack([torch.from_numpy(a[:96, :96]).permute(2, 0, 1) for a in arrays]).double()


def library_features(model, images):
    """As users of timm and torchvision call them: 0..1, minus the mean, over the deviation."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    model = model.double().eval()
    act = getattr(model, "relu", None) or model.act1
    with torch.no_grad():
        x = model.maxpool(act(model.bn1(model.conv1((images / 255 - mean) / std))))
        result = {}
        for i, stage in enumerate(STAGES):
            x = result[stage] = getattr(model, f"layer{i + 1}")(x)
    return result


def detector_features(model, images):
    model = model.double().eval()
    with torch.no_grad():
        return model.backbone.bottom_up((images - model.pixel_mean) / model.pixel_std)


def compare(found, expected, rtol):
    for stage in STAGES:
        scale = float(expected[stage].abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(found[stage], expected[stage], rtol=rtol, atol=rtol * scale)


def test_a_file_of_timm_trains_in_a_detector_and_goes_back(scenes, tmp_path, photographs):
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=7)
    for name, tensor in source.state_dict().items():
        if tensor.dim() == 1 and "fc" not in name:  # norms, as if they had been trained
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    path = str(tmp_path / "timm.safetensors")
    write_tensors(path, source.state_dict())
    data = ("DATASETS.TRAIN", (register_scenes(scenes, "train"),), "DATASETS.TEST", ())
    settings = [*data, "MODEL.WEIGHTS", path, "MODEL.ROI_HEADS.NUM_CLASSES", 4]
    cfg = load_config(
        "demo/faster_rcnn_R_18_FPN.yaml", *SMALL, *R18, *settings, "OUTPUT_DIR", str(tmp_path)
    )
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=False)
    # the means on the scale of 0..255 are rounded to float32 in a detector
    found = detector_features(trainer.model, photographs)
    compare(found, library_features(source, photographs), rtol=1e-6)

    trainer.model.float().train()
    trainer.train()
    expected = detector_features(trainer.model, photographs)
    backbone = read_backbone(str(tmp_path / "model_final.pth"))
    assert backbone.source == "Detectron2 detector with FPN, behind 'backbone.bottom_up.'"
    state = to_torchvision(backbone.tensors, backbone.spec)
    assert not torch.equal(state["layer4.1.conv2.weight"], source.layer4[1].conv2.weight.float())
    for model in (timm.create_model("resnet18", num_classes=0), torchvision.models.resnet18()):
        model.fc = torch.nn.Identity()
        model.load_state_dict(state)
        compare(library_features(model, photographs), expected, rtol=1e-6)
