"""What `DATASETS.TRAIN` and `DATASETS.TEST` may name: data sets, subsets of them, or any folder."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .check import check_datasets, describe_folder
from .folders import list_images
from .labels import Labels

# What the metadata says of a data set and not of a share of it.
_OF_BASE = ("name", "evaluator_type", "share_of", "json_file", "image_root", "dirname", "split")

logger = logging.getLogger(__name__)


def is_shard_name(name: str) -> bool:
    """Whether an entry of DATASETS.TRAIN means tar shards: `x.tar`, `x-{00..41}.tar`, `x-*.tar`."""
    return re.search(r"\.(tar|tgz|tar\.\w+)$", name) is not None


def register_by_name(names: Sequence[str]) -> None:
    """Register each name that says by itself what it holds, and is not registered yet.

    Nothing is read for it. What is registered with Detectron2's `register_coco_instances` gets the
    reader of this package, which completes what is missing.

    Args:
        names: `FILE.json` or `FILE.json@IMAGES`, COCO's format; `FOLDER:SPLIT`, VOC's layout;
            `FILE.yaml:SPLIT`, YOLO's; a folder of images; `scenes_<split>_<count>@<root>`, rendered
            scenes, which are written if they are not there; any of these, or a registered name,
            with `%<percent>` or `%<percent>,seed=<n>` behind it, a share. Others are left alone.

    Raises:
        ValueError, FileNotFoundError: a share that is none, a split that is not there.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            _register(name)
        load = DatasetCatalog[name] if name in DatasetCatalog.list() else None
        if getattr(load, "__module__", "") == load_coco_json.__module__:
            metadata = MetadataCatalog.get(name)
            DatasetCatalog.pop(name)
            read = partial(_read_coco, metadata.json_file, metadata.image_root or ".")
            DatasetCatalog.register(name, partial(_load, name, read))


def _register(name: str) -> None:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        DatasetCatalog.register(name, partial(list_images, path))
        MetadataCatalog.get(name).set(evaluator_type=None)
    elif share := _parse_share(name):
        base, percent, seed = share
        register_by_name([base])
        kind = MetadataCatalog.get(base).get("evaluator_type", "coco")
        MetadataCatalog.get(name).set(share_of=base, evaluator_type=kind and "coco")
        DatasetCatalog.register(name, partial(_load, name, partial(_read_share, *share)))
    elif match := re.fullmatch(r"scenes_(\w+_(\d+))@(.+)", name):
        from .synthetic import register_scenes, write_scenes

        if not Path(match[3], "annotations", f"instances_{match[1]}.json").is_file():
            logger.info("Rendering %s scenes below %s", match[2], match[3])
            write_scenes(match[3], match[1], int(match[2]), seed=0)
        register_scenes(match[3], match[1])
    elif read := _find_reader(path):
        DatasetCatalog.register(name, partial(_load, name, read))
        MetadataCatalog.get(name).set(evaluator_type="coco")


def _find_reader(path: str) -> Callable[[], Labels] | None:
    """What reads the labelled data that a path names, if it names any."""
    file, _, images = re.sub(r"(?i)(\.json)@", r"\1\0", path, count=1).partition("\0")
    if file.lower().endswith(".json") and os.path.isfile(file):
        if images and not os.path.isdir(images):
            raise FileNotFoundError(f"The images of {file!r}: {describe_folder(images)}")
        return partial(_read_coco, file, images)
    place, _, split = path.rpartition(":")
    if place.lower().endswith((".yaml", ".yml")) and os.path.isfile(place):
        from .yolo import read_yolo

        return partial(read_yolo, place, split)
    if os.path.isdir(place):
        from .voc import find_split, read_voc

        find_split(place, split)
        return partial(read_voc, place, split)
    return None


def _read_coco(file: str, images: str) -> Labels:
    from .coco import read_coco

    return read_coco(file, images)


def _parse_share(name: str) -> tuple[str, float, int] | None:
    """The data set, percent and seed of a share; or of `voc_<split>_<fraction>_seed<n>@<root>` and
    `<name>_<percent>percent_seed<n>`, as shares were called before.

    Raises:
        ValueError: more than all of it, or nothing.
    """
    number = r"(\d+\.?\d*|\.\d+)"
    if match := re.fullmatch(rf"voc_(\w+?)_{number}_seed(\d+)@(.+)", name):
        split, fraction, seed, root = match.groups()
        return f"{root}:{split}", 100 * float(fraction), int(seed)
    match = re.fullmatch(rf"(.+)%{number}(?:,seed=(\d+))?", name)
    match = match or re.fullmatch(rf"(.+)_{number}percent_seed(\d+)", name)
    if not match:
        return None
    base, percent, seed = match[1], float(match[2]), int(match[3] or 0)
    if not 0 < percent <= 100:
        raise ValueError(f"{name!r}: a share must be above 0 and at most 100 percent.")
    return base, percent, seed


def _read_share(base: str, percent: float, seed: int) -> Labels:
    register_by_name([base])
    images = DatasetCatalog.get(base)
    known = MetadataCatalog.get(base).as_dict()  # the classes are, once the base has been read
    metadata = {key: value for key, value in known.items() if key not in _OF_BASE}
    return seeded_subset(images, max(1, round(percent / 100 * len(images))), seed), metadata


def _load(name: str, read: Callable[[], Labels]) -> list[dict[str, Any]]:
    """Read a data set; its classes are numbered as its metadata says, if that knows them already.

    Raises:
        ValueError: a box of a class that the metadata has not.
    """
    images, found = read()
    metadata = MetadataCatalog.get(name)
    own, wanted = found.get("thing_classes"), metadata.get("thing_classes")
    if own and wanted and list(own) != list(wanted):
        numbers = {i: wanted.index(title) for i, title in enumerate(own) if title in wanted}
        for label in (label for image in images for label in image.get("annotations", [])):
            if label["category_id"] not in numbers:
                raise ValueError(
                    f"{name!r} has boxes of {own[label['category_id']]!r}, which the data that it "
                    f"goes with has not: {', '.join(wanted)}."
                )
            label["category_id"] = numbers[label["category_id"]]
        found = {}
    metadata.set(**{key: value for key, value in found.items() if metadata.get(key) is None})
    return images


def use_classes(name: str, classes: Sequence[str]) -> None:
    """Number the classes of a data set as another one does, by their names.

    Raises:
        ValueError: its evaluator has an order of its own.
    """
    metadata = MetadataCatalog.get(name).as_dict()
    load, own = DatasetCatalog[name], metadata.get("thing_classes")
    if own and list(own) == list(classes):
        return
    if metadata.get("evaluator_type", "coco") != "coco":
        raise ValueError(
            f"{name!r} has the classes {own}, which its own evaluator numbers; the data it goes "
            f"with has {list(classes)}."
        )
    if own and getattr(load, "func", None) is not _load:  # registered in Python
        DatasetCatalog.pop(name)
        read = lambda: (load(), {"thing_classes": own})  # noqa: E731
        DatasetCatalog.register(name, partial(_load, name, read))
    MetadataCatalog.pop(name)  # it refuses other values than the first
    metadata.pop("thing_dataset_id_to_contiguous_id", None)
    MetadataCatalog.get(name).set(**{**metadata, "thing_classes": list(classes)})


def register_voc_folder(root: str, split: str) -> str:
    """Register a split of a folder in VOC's layout; returns its name."""
    register_by_name([f"{root}:{split}"])
    return f"{root}:{split}"


def load_images(names: Sequence[str], key: str = "DATASETS.TRAIN") -> list[dict[str, Any]]:
    """The images of data sets and folders without their annotations, each file once.

    Raises:
        ValueError: no names, or one that is neither; suggests the nearest registered ones.
    """
    if not names:
        raise ValueError(
            f"{key} is empty; name a registered data set or a folder of images, such as "
            """DATASETS.TRAIN '("/my/photos",)'."""
        )
    register_by_name(names)
    check_datasets(names, key)
    images = []
    for name in names:
        found = [{"file_name": d["file_name"]} for d in DatasetCatalog.get(name)]
        logger.info("%s: %d images", name, len(found))
        images += found
    once = {os.path.abspath(d["file_name"]): d for d in images} if len(names) > 1 else {}
    if 0 < len(once) < len(images):  # of a folder in another
        logger.info("%s: %d different images", key, len(once))
    return list(once.values()) or images


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


for _split in ("train", "val"):
    _folder = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "imagenet", _split)
    DatasetCatalog.register(f"imagenet_{_split}", partial(list_images, _folder))
    MetadataCatalog.get(f"imagenet_{_split}").set(image_root=_folder)
register_by_name(  # the paper's low-data experiments
    [f"coco_2017_train_{p}percent_seed{seed}" for p in (1, 2, 5, 10) for seed in range(10)]
)
