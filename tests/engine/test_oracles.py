"""Every evaluator gives full marks to the ground truth and none to what is wrong or missing."""

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from cityscapesscripts.helpers.labels import id2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from detco_d2.engine.transfer import TransferTrainer

from ..conftest import load_config

# The data set, what of it is scored, and the score of who predicts nothing.
DETECTION = [
    ("coco_2017_val", "bbox", ("AP", "AP50"), math.nan),
    ("coco_2017_val", "segm", ("AP", "AP50"), math.nan),
    ("keypoints_coco_2017_val", "keypoints", ("AP", "AP50", "APm"), math.nan),
    ("voc_2007_test", "bbox", ("AP", "AP50"), 0),
    ("voc_2012_trainval", "bbox", ("AP", "AP50"), 0),
    ("cityscapes_fine_instance_seg_val", "segm", ("AP", "AP50"), 0),
]
SCORES = {"true": 100, "wrong": 0}
SEMANTIC = ("cityscapes_fine_sem_seg_val", "sem_seg", ("IoU",))


class Oracle(nn.Module):
    """Answers each image of a data set with what it was told to."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, inputs):
        return [self.answers[image["file_name"]] for image in inputs]


def true_instances(record, classes):
    """The ground truth as predictions at the original size."""
    size = record["height"], record["width"]
    annotations = record["annotations"]
    labels = [a["category_id"] for a in annotations]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = keypoints = None
    if "cityscapes" in record["file_name"]:  # judged by its PNG: polygons are dilated on loading
        file = record["file_name"].replace("leftImg8bit", "gtFine").removesuffix(".png")
        image = np.asarray(Image.open(f"{file}_instanceIds.png"))
        ids = np.unique(image[image >= 1000])
        labels = [classes.index(id2label[i // 1000].name) for i in ids]
        masks = [image == i for i in ids]
    elif "segmentation" in annotations[0]:
        polygons = [mask_util.frPyObjects(a["segmentation"], *size) for a in annotations]
        masks = [mask_util.decode(rles).any(axis=2) for rles in polygons]
    if "keypoints" in annotations[0]:
        keypoints = torch.tensor([a["keypoints"] for a in annotations]).reshape(-1, 17, 3)
    found = Instances(size)
    found.pred_classes, found.scores = torch.tensor(labels), torch.ones(len(labels))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    if masks:
        found.pred_masks = torch.from_numpy(np.stack(masks))
    if keypoints is not None:
        found.pred_keypoints = keypoints
    return found


def answer(record, how, classes):
    """What the oracle says of an image, and the set of true classes in it."""
    if "sem_seg_file_name" in record:
        train_ids = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        said = (train_ids + (how == "wrong")) % len(classes)  # of ignored pixels: anything
        one_hot = nn.functional.one_hot(said, len(classes)).permute(2, 0, 1).float()
        return {"sem_seg": one_hot}, set(train_ids.unique().tolist()) - {255}
    found = true_instances(record, classes)
    present = set(found.pred_classes.tolist())
    if how == "wrong":
        found.pred_classes = (found.pred_classes + 1) % len(classes)
        if found.has("pred_keypoints"):  # people are the only class: their joints are elsewhere
            found.pred_keypoints[..., :2] += 1000
    return {"instances": found[:0] if how == "nothing" else found}, present


@pytest.mark.parametrize(
    "how, name, task, metrics, expected",
    [(how, *case[:3], score) for how, score in SCORES.items() for case in [*DETECTION, SEMANTIC]]
    + [("nothing", *case) for case in DETECTION],  # a pixel cannot be left without a class
)
def test_an_oracle_scores_what_it_must(standard_data, tmp_path, how, name, task, metrics, expected):
    metadata = MetadataCatalog.get(name)
    classes = metadata.stuff_classes if task == "sem_seg" else metadata.thing_classes
    answers, present = {}, set()
    for record in DatasetCatalog.get(name):
        answers[record["file_name"]], here = answer(record, how, classes)
        present |= here
    assert present == set(range(len(classes)))  # no class is left out of the mean
    settings = ["DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path)]
    settings += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 32, "INPUT.MAX_SIZE_TEST", 64]
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", *settings)
    results = TransferTrainer.test(cfg, Oracle(answers))
    # COCO's evaluator takes its tasks from the predictions; from none it takes boxes.
    scores = results["bbox" if task not in results and how == "nothing" else task]
    assert [scores[m] for m in metrics] == pytest.approx([expected] * len(metrics), nan_ok=True)
