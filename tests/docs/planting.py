"""What a reader of the documentation has: images, labelled data, weight files, finished runs."""

import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import torch

from detco_d2.data.synthetic import write_scenes
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.names import TO_TORCHVISION

from .. import warm
from ..conftest import ROOT
from ..weights.test_input_spec import write_caffe2
from .commands import PRETRAIN

REPOSITORY = ("configs", "detco_d2", "tests", "tools", "pretrain_net.py", "train_net.py")


def _plant_weights(root: Path) -> None:
    """A finished run, and its backbone under MSRA's and under MoCo's names."""
    command = [sys.executable, "-W", "ignore", "pretrain_net.py", "--num-gpus", "0"]
    command += ["--config-file", "configs/detco.yaml", *map(str, PRETRAIN)]
    command += ["DATASETS.TRAIN", f"('{root}/my/photos',)", "OUTPUT_DIR", str(root / "run")]
    done = warm.run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    backbone = read_backbone(str(root / "run/model_final.pth")).tensors
    write_caffe2(backbone, root / "R-50.pkl")
    names = {name: f"module.encoder_q.{TO_TORCHVISION.get(name)}" for name in backbone}
    moco = {names[name]: tensor for name, tensor in backbone.items()}
    torch.save({"state_dict": moco, "arch": "resnet18"}, root / "moco_v2_200ep.pth.tar")


def plant(root: Path, layouts: str) -> None:
    """Plants all but a page's own folder: my/, data/, shared/ and what pages get copies of."""
    for place, split, count in (
        ("my", "photos", 24),
        ("my", "new_photos", 2),
        ("data/mine", "train", 8),
        ("data/mine", "test", 4),
        ("few_scenes", "train_400", 8),
        ("few_scenes", "test_100", 4),
    ):
        write_scenes(str(root / place), split, count, seed=0, size=(96, 128))
    data, photos = root / "data", sorted((root / "my/photos").glob("*.jpg"))
    shutil.copy(photos[0], root / "my/photos/cat.jpg")
    (root / "shared").mkdir()
    for split in ("train", "test"):
        (data / f"mine/{split}.json").symlink_to(f"annotations/instances_{split}.json")
    for split, first in (("train", 0), ("val", 8)):
        for kind, start in (("rose", first), ("tulip", first + 4)):
            folder = data / "flowers" / split / kind
            folder.mkdir(parents=True)
            for photo in photos[start : start + 4]:
                shutil.copy(photo, folder)
    (data / "datasets").mkdir()
    for name in os.listdir(layouts):
        (data / "datasets" / name).symlink_to(os.path.join(layouts, name))
    (data / "datasets/imagenet").symlink_to(data / "flowers")
    for name in ("voc", "bccd"):
        (data / name).symlink_to(data / "datasets/VOC2007")
    for number in range(4):
        with tarfile.open(data / f"train-{number:06d}.tar", "w") as tar:
            for photo in photos[number::4]:
                tar.add(photo, arcname=photo.name)
    _plant_weights(root)


def plant_page(folder: Path, root: Path, text: str) -> None:
    """Plants the repository, and the runs that the page does not make itself."""
    for name in REPOSITORY:
        (folder / name).symlink_to(Path(ROOT, name))
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    for run in ("output/mine", "output/detco"):
        if not re.search(rf"OUTPUT_DIR {run}\b", text):
            shutil.copytree(root / "run", folder / run)
    for name in ("R-50.pkl", "moco_v2_200ep.pth.tar"):
        os.link(root / name, folder / name)
