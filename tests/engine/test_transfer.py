"""Detectors train from a pretrained backbone and are evaluated."""

import json
import os

import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

from detco_d2.data.datasets import register_coco_subset
from detco_d2.data.synthetic import register_scenes
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.transfer import TransferTrainer, build_evaluator, evaluate

from ..conftest import load_config, tiny_config

SMALL = [
    *["INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 128, "INPUT.MIN_SIZE_TEST", 96],
    *["INPUT.MAX_SIZE_TEST", 128, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2],
    *["SOLVER.STEPS", (1,), "TEST.PRECISE_BN.NUM_ITER", 2, "DATALOADER.NUM_WORKERS", 0],
    *["MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "SEED", 1],
    *["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0],
    *["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32],
]
DETECTORS = [
    f"coco/{name}_1x.yaml"
    for name in ("mask_rcnn_R_50_C4", "mask_rcnn_R_50_FPN", "retinanet_R_50_FPN")
]


@pytest.fixture(scope="module")
def pretrained_50(scenes, tmp_path_factory):
    """A ResNet-50 after two steps of DetCo."""
    output = str(tmp_path_factory.mktemp("pretrained"))
    cfg = tiny_config(
        *["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256],
        *["DATASETS.TRAIN", (register_scenes(scenes, "train"),), "OUTPUT_DIR", output],
        *["SOLVER.MAX_ITER", 2],
    )
    PretrainTrainer(cfg).train()
    return os.path.join(output, "model_final.pth")


def train_and_evaluate(config, weights, train, test, output, *settings):
    cfg = load_config(
        config,
        *["MODEL.WEIGHTS", weights, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,)],
        *["OUTPUT_DIR", str(output), *SMALL, *settings],
    )
    os.makedirs(output, exist_ok=True)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize("config", DETECTORS)
def test_the_three_detectors_train_and_evaluate_on_real_images(
    real_data, pretrained_50, tmp_path, config
):
    for split in ("train", "val"):  # at import Detectron2 may have seen another data folder
        metadata = MetadataCatalog.get(f"coco_2017_{split}")
        assert os.path.isfile(metadata.json_file), metadata.json_file
    train = register_coco_subset("coco_2017_train", 8, 0, str(tmp_path))
    test = register_coco_subset("coco_2017_val", 4, 0, str(tmp_path))
    trainer = train_and_evaluate(config, pretrained_50, train, test, tmp_path / "out")
    results = trainer._last_eval_results
    assert 0 <= results["bbox"]["AP"] <= 100
    if "mask" in config:
        assert 0 <= results["segm"]["AP"] <= 100
    assert os.path.isfile(tmp_path / "out" / "model_final.pth")


def test_evaluation_alone_gives_what_training_gave(scenes, tmp_path):
    train, test = register_scenes(scenes, "train"), register_scenes(scenes, "test")
    config, classes = "demo/faster_rcnn_R_18_FPN.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", 4]
    trainer = train_and_evaluate(config, "", train, test, tmp_path, *classes)

    def predictions():
        found = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
        return [f["score"] for f in found], [f["bbox"] for f in found]

    scores, boxes = predictions()
    assert len(scores) > 10
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    for resume in (False, True):
        (tmp_path / "inference" / "coco_instances_results.json").unlink()
        results = evaluate(cfg, resume=resume)
        assert predictions() == (pytest.approx(scores), [pytest.approx(box) for box in boxes])
        assert results["bbox"] == pytest.approx(trainer._last_eval_results["bbox"], nan_ok=True)


def test_a_resumed_fine_tuning_continues_at_its_iteration(scenes, tmp_path):
    train, test = register_scenes(scenes, "train"), register_scenes(scenes, "test")
    settings = ["MODEL.ROI_HEADS.NUM_CLASSES", 4]
    config = "demo/faster_rcnn_R_18_FPN.yaml"
    first = train_and_evaluate(config, "", train, test, tmp_path, *settings)
    cfg = first.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 4
    second = TransferTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    optimizer = second.optimizer.state_dict()["state"]
    assert optimizer and all("momentum_buffer" in state for state in optimizer.values())


def test_the_evaluator_follows_the_metadata(scenes, tmp_path):
    cfg = load_config(DETECTORS[0], "OUTPUT_DIR", str(tmp_path))
    assert isinstance(build_evaluator(cfg, register_scenes(scenes, "test")), COCOEvaluator)
    name = "voc_2007_test"
    if os.path.isdir(os.path.join(MetadataCatalog.get(name).dirname, "ImageSets")):
        assert isinstance(build_evaluator(cfg, name), PascalVOCDetectionEvaluator)
    MetadataCatalog.get("detco_untyped").set(evaluator_type="tea")
    with pytest.raises(ValueError, match="evaluator_type is 'tea'"):
        build_evaluator(cfg, "detco_untyped")
