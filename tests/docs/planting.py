"""What a reader of the documentation has: images, labelled data, weight files, finished runs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import torch

from detco_d2.data.cityscapes import make_train_id_files
from detco_d2.data.synthetic import write_scenes
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.names import TO_TORCHVISION

from ..conftest import ROOT
from ..layouts import write_cityscapes, write_coco, write_voc
from ..weights.test_input_spec import write_caffe2
from .rules import PRETRAIN

REPOSITORY = ("configs", "detco_d2", "docs", "tests", "tools", "Makefile", "pretrain_net.py")
REPOSITORY += ("train_net.py", "setup.py", "pyproject.toml", "README.md", "requirements")
RUNS = ("output/mine", "output/detco", "output/photos")


def _plant_runs(root: Path) -> None:
    """Runs of pretraining that are done."""
    command = [sys.executable, "-W", "ignore", "pretrain_net.py", "--num-gpus", "0"]
    command += ["--config-file", "configs/detco.yaml", *map(str, PRETRAIN)]
    command += ["DATASETS.TRAIN", f"('{root}/my/photos',)", "OUTPUT_DIR", str(root / RUNS[0])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for run in RUNS[1:]:
        shutil.copytree(root / RUNS[0], root / run)


def _plant_weights(root: Path) -> None:
    """The same backbone under MSRA's and under MoCo's names."""
    backbone = read_backbone(str(root / "output/mine/model_final.pth")).tensors
    write_caffe2(backbone, root / "R-50.pkl")
    names = {name: TO_TORCHVISION.get(name) for name in backbone}
    moco = {f"module.encoder_q.{names[name]}": tensor for name, tensor in backbone.items()}
    for name in ("moco_v2_200ep.pth.tar", "moco_v2_800ep.pth.tar", "epoch_200.pth"):
        torch.save({"state_dict": moco, "arch": "resnet18"}, root / name)


def plant(root: Path) -> None:
    """Everything but a page's own folder.

    Args:
        root: holds my/, data/, shared/, and what is copied into the folder of each page.
    """
    scenes = root / "few_scenes"
    write_scenes(str(scenes), "train_400", 8, seed=0, size=(96, 128))
    write_scenes(str(scenes), "test_100", 4, seed=1, size=(96, 128))
    photos = root / "my/photos"
    write_scenes(str(root / "scenes"), "photos", 24, seed=2, size=(96, 128))
    photos.parent.mkdir(parents=True)
    shutil.move(str(root / "scenes/photos"), photos)
    shutil.copy(next(photos.glob("*.jpg")), photos / "cat.jpg")
    (root / "shared").mkdir()
    data = root / "data"
    write_coco(str(data / "datasets"), 16, seed=0, size=(160, 208), max_objects=16)
    write_voc(str(data / "datasets"), 12, seed=0, size=(120, 160))
    if find_spec("cityscapesscripts"):
        write_cityscapes(str(data / "datasets"), 4, seed=0, size=(120, 240))
        for split in ("train", "val"):
            make_train_id_files(str(data / "datasets/cityscapes/gtFine" / split))
    (data / "mine").mkdir()
    for name, split in (("train_400", "train"), ("test_100", "test")):
        shutil.copytree(scenes / name, data / "mine" / split)
        shutil.copy(scenes / f"annotations/instances_{name}.json", data / f"mine/{split}.json")
    for name in ("voc", "bccd"):
        (data / name).symlink_to(data / "datasets/VOC2007")
    for split, first in (("train", 0), ("val", 16)):
        files = sorted(photos.glob("*.jpg"))[first : first + 8]
        for kind, chosen in (("rose", files[::2]), ("tulip", files[1::2])):
            for place in (data / "flowers", data / "datasets/imagenet"):
                folder = place / split / kind
                folder.mkdir(parents=True)
                for file in chosen:
                    shutil.copy(file, folder)
    for number in range(4):
        with tarfile.open(data / f"train-{number:06d}.tar", "w") as tar:
            for file in sorted(photos.glob("*.jpg"))[number::4]:
                tar.add(file, arcname=file.name)
    _plant_runs(root)
    _plant_weights(root)


def plant_page(folder: Path, root: Path, text: str) -> None:
    """The repository, and the runs that the page does not make itself."""
    for name in REPOSITORY:
        (folder / name).symlink_to(Path(ROOT, name))
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text("")
    (folder / "output").mkdir()
    for run in RUNS:
        if run in text and not re.search(rf"OUTPUT_DIR {run}\b", text):
            shutil.copytree(root / run, folder / run)
    for file in (*root.glob("*.pkl"), *root.glob("*.pth*")):
        os.link(file, folder / file.name)
    photos = sorted((root / "my/photos").glob("*.jpg"))
    (folder / "photos").mkdir()
    (folder / "coco").symlink_to(root / "data/datasets/coco")
    named = sorted(set(re.findall(r"photos/(\d+\.jpg)", text)))
    for name, photo in zip(named or [photo.name for photo in photos], photos):
        (folder / "photos" / name).symlink_to(photo)
