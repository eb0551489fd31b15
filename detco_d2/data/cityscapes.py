"""Cityscapes' training labels, which its download leaves to be made from its ids."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import replacing


def make_train_id_files(gt_dir: str) -> int:
    """Make each *_gtFine_labelTrainIds.png that is missing from its *_gtFine_labelIds.png.

    Args:
        gt_dir: one split's ground truth, for example datasets/cityscapes/gtFine/train.

    Returns:
        how many files were made.

    Raises:
        FileNotFoundError: no *_gtFine_labelIds.png in the folders of `gt_dir`.
        RuntimeError: a file cannot be written.
    """
    from cityscapesscripts.helpers.labels import labels  # only those who use Cityscapes have it

    train_ids = np.full(256, 255, np.uint8)
    for label in labels:
        if label.id >= 0:  # a license plate's is -1: it is never painted
            train_ids[label.id] = label.trainId
    sources = sorted(Path(gt_dir).glob("*/*_gtFine_labelIds.png"))
    if not sources:
        raise FileNotFoundError(
            f"No */*_gtFine_labelIds.png below {os.path.abspath(gt_dir)!r}; Cityscapes' gtFine "
            "package belongs in cityscapes/gtFine/ of the folder that DETECTRON2_DATASETS names."
        )
    made = 0
    for source in sources:
        target = source.with_name(source.name.replace("_labelIds", "_labelTrainIds"))
        if target.exists():
            continue
        image = Image.fromarray(train_ids[np.asarray(Image.open(source))])
        try:
            with replacing(target) as file:
                image.save(file, format="PNG")
        except OSError as error:
            raise RuntimeError(
                f"Cannot write {target.name} into {str(target.parent)!r}: {error}. Make the folder "
                "writable once, or run `csCreateTrainIdLabelImgs` of cityscapesscripts as its "
                "owner with CITYSCAPES_DATASET set to the folder that holds gtFine."
            ) from error
        made += 1
    return made
