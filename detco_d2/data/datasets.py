"""What `DATASETS.TRAIN` and `DATASETS.TEST` may name: data sets, subsets of them, or any folder."""

import logging
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances

from .check import check_datasets, describe_folder
from .decode import EXTENSIONS

# What systems and programs keep beside photographs: thumbnails, twins, the bin.
_NOT_OURS = re.compile(
    r"\.(?!\.|$)|~\$|(__macosx|@(eadir|tmp|recycle)|#(recycle|snapshot)|lost\+found|\$recycle\.bin|recycler|"
    r"system volume information|thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system keeps for itself."""
    return _NOT_OURS.match(name) is not None


def list_images(folder: str) -> list[dict[str, Any]]:
    """All images below a folder, sorted by path, as Detectron2 data-set dicts.

    Links are followed, and a folder that is reached in several ways is read once. A link to a file
    that is not there counts as an image, which training will find unreadable. Hidden files and
    those of systems are left out; the log counts what is, by ending.

    Raises:
        FileNotFoundError, OSError: no such folder, no image in it, or a part that cannot be read.
    """
    # Detectron2 opens paths after `link/..` has been struck out of them, which may lead elsewhere.
    root = os.path.realpath(folder) if ".." in Path(folder).parts else folder
    if not os.path.isdir(root):
        raise FileNotFoundError(describe_folder(root))
    files: list[str] = []
    left: Counter[str] = Counter()
    seen: set[str] = set()
    for directory, folders, names in os.walk(root, onerror=_stop, followlinks=True):
        # in order, so that the same one of several ways is taken everywhere
        folders[:] = sorted(name for name in folders if not is_foreign(name))
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if is_foreign(name):
                left["hidden or of the system"] += 1
            elif ending in EXTENSIONS:
                files.append(os.path.join(directory, name))
            else:
                left[ending or "without an ending"] += 1
    if left:
        counts = ", ".join(f"{count} {ending}" for ending, count in left.most_common(10))
        logger.info("%s: %d files are left out: %s", folder, left.total(), counts)
    if not files:
        looked_for = f"looked for {', '.join(EXTENSIONS)}"
        raise FileNotFoundError(f"No image below: {describe_folder(root)}; {looked_for}.")
    return [{"file_name": name, "image_id": i} for i, name in enumerate(sorted(files))]


def _stop(error: OSError) -> None:
    """Of os.walk, which would leave out what it cannot read."""
    raise type(error)(f"{error}: a folder below one of DATASETS.TRAIN cannot be read.") from error


def is_shard_name(name: str) -> bool:
    """Whether an entry of DATASETS.TRAIN means tar shards: `x.tar`, `x-{00..41}.tar`, `x-*.tar`."""
    return re.search(r"\.(tar|tgz|tar\.\w+)$", name) is not None


def register_by_name(names: Sequence[str]) -> None:
    """Register each name that says by itself what it holds, and is not registered yet.

    Args:
        names: `scenes_<split>_<count>@<root>`, rendered scenes, which are written if they are not
            there; `voc_<split>_<fraction>_seed<n>@<root>`, a share of a folder in VOC's layout;
            `coco_2017_train_<n>percent_seed<n>`; or a directory. Any other name is left alone.
    """
    for name in names:
        if name in DatasetCatalog.list():
            continue
        if match := re.fullmatch(r"scenes_(\w+_(\d+))@(.+)", name):
            from .synthetic import register_scenes, write_scenes

            if not Path(match[3], "annotations", f"instances_{match[1]}.json").is_file():
                logger.info("Rendering %s scenes below %s", match[2], match[3])
                write_scenes(match[3], match[1], int(match[2]), seed=0)
            register_scenes(match[3], match[1])
        elif match := re.fullmatch(r"voc_(\w+?)_([\d.]+)_seed(\d+)@(.+)", name):
            _register_voc_folder(name, match[4], match[1], float(match[2]), int(match[3]))
        elif match := re.fullmatch(r"(coco_2017_train)_([\d.]+)percent_seed(\d+)", name):
            _register_share(match[1], float(match[2]), int(match[3]))
        elif os.path.isdir(name):
            DatasetCatalog.register(name, lambda name=name: list_images(name))
            MetadataCatalog.get(name).set(evaluator_type=None)


def load_images(names: Sequence[str]) -> list[dict[str, Any]]:
    """The images of data sets and folders without their annotations; none is dropped.

    Raises:
        ValueError: no names, or one that is neither; suggests the nearest registered ones.
    """
    if not names:
        raise ValueError(
            "DATASETS.TRAIN is empty; name a registered data set or a folder of images, such as "
            """DATASETS.TRAIN '("/my/photos",)'."""
        )
    register_by_name(names)
    check_datasets(names, "DATASETS.TRAIN")
    images = []
    for name in names:
        found = [{"file_name": d["file_name"]} for d in DatasetCatalog.get(name)]
        logger.info("%s: %d images", name, len(found))
        images += found
    return images


def prepare_datasets(train: Sequence[str], test: Sequence[str]) -> None:
    """Register, check and complete the data sets of a run, before any process starts.

    Raises:
        ValueError, FileNotFoundError: see :func:`check_datasets`.
    """
    for key, names in (("DATASETS.TRAIN", train), ("DATASETS.TEST", test)):
        register_by_name(names)
        check_datasets(names, key)
        for name in names:
            metadata = MetadataCatalog.get(name)
            if metadata.get("evaluator_type") == "cityscapes_sem_seg":
                from .cityscapes import make_train_id_files

                made = make_train_id_files(metadata.gt_dir)
                logger.info("%s: %d labelTrainIds files made", name, made)


def seeded_subset(items: Sequence[Any], count: int, seed: int) -> list[Any]:
    """At most `count` of the items, drawn from the seed alone, in their original order."""
    chosen = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]


def _register_voc_folder(name: str, root: str, split: str, fraction: float, seed: int) -> None:
    """Register a share of a folder in PASCAL VOC's layout, with the classes that its boxes name.

    Raises:
        FileNotFoundError: no such list of images.
    """
    image_set = Path(root, "ImageSets", "Main", f"{split}.txt")
    if not image_set.is_file():
        raise FileNotFoundError(f"{root!r} is not in VOC's layout: there is no {str(image_set)!r}.")
    found = {
        element.text
        for file in Path(root, "Annotations").glob("*.xml")
        for element in ElementTree.parse(file).iterfind("object/name")
    }
    classes = sorted(name for name in found if name)

    def load() -> list[dict[str, Any]]:
        images = load_voc_instances(root, split, classes)
        return seeded_subset(images, round(fraction * len(images)), seed)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=classes, dirname=root, split=split, year=2012, evaluator_type="pascal_voc"
    )


def _register_share(base: str, percent: float, seed: int) -> None:
    """Register `<base>_<percent>percent_seed<seed>`: a share of the images of a data set."""
    name = f"{base}_{percent:g}percent_seed{seed}"

    def load() -> list[dict[str, Any]]:
        images = DatasetCatalog.get(base)
        classes = MetadataCatalog.get(base).thing_classes  # known once the base has been read
        MetadataCatalog.get(name).set(thing_classes=classes)
        return seeded_subset(images, max(1, round(percent / 100 * len(images))), seed)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(share_of=base, evaluator_type="coco")


def _register_imagenet(root: str) -> None:
    for split in ("train", "val"):
        name, folder = f"imagenet_{split}", os.path.join(root, "imagenet", split)
        DatasetCatalog.register(name, lambda folder=folder: list_images(folder))
        MetadataCatalog.get(name).set(image_root=folder)


_register_imagenet(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _percent in (1, 2, 5, 10):  # the paper's low-data experiments
    for _seed in range(10):
        _register_share("coco_2017_train", _percent, _seed)
