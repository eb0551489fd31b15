"""Cityscapes' training labels, which its download leaves to be made, and its mended evaluator."""

import importlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..compat import CITYSCAPES_ALIAS
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


def mend_evaluator() -> None:
    """Keep cityscapesscripts 2.3.0 from failing, after all of a training, at its evaluation.

    It leaves a matches.json, which nobody reads, in the working folder (NumPy 2.3 makes it die of
    the integers in it), and calls `numpy.in1d`, which NumPy 2.4 no longer has.
    """
    for root in ("cityscapesscripts", f"{CITYSCAPES_ALIAS}.cityscapesscripts"):
        module = importlib.import_module(f"{root}.evaluation.evalInstanceLevelSemanticLabeling")
        vars(module).update(writeDict2JSON=lambda *_: None)
    vars(np).setdefault("in1d", np.isin)
