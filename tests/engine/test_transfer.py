"""Every protocol trains from a pretrained backbone and is evaluated."""

import glob
import json
import math
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.transforms import AugInput
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils.env import seed_all_rng
from PIL import Image

from detco_d2.data.datasets import seeded_subset
from detco_d2.data.synthetic import register_scenes
from detco_d2.engine.output_dir import check_output_dir
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.transfer import TransferTrainer, build_mapper, load_detector

from ..conftest import NARROW, ROOT, SETTINGS, load_config, tiny_config

SMALL = NARROW + SETTINGS["DETECTOR"]
SEGMENTATION = "cityscapes/semantic_segmentation_R_50_FCN.yaml"
SMALL_CROPS = ["INPUT.MIN_SIZE_TRAIN", (64, 192), "INPUT.CROP.SIZE", [97, 97]]
# What the evaluator of each kind of network must report, and some of the losses behind it.
METRICS = {
    "coco*/mask_rcnn_*": ({"bbox": ["AP", "AP50"], "segm": ["AP", "AP50"]}, {"loss_mask"}),
    "coco*/retinanet_*": ({"bbox": ["AP", "AP50"]}, {"loss_cls", "loss_box_reg"}),
    "coco/keypoint_*": ({"bbox": ["AP"], "keypoints": ["AP", "AP50"]}, {"loss_keypoint"}),
    "voc/*": ({"bbox": ["AP", "AP50", "AP75"]}, {"loss_rpn_cls", "loss_box_reg"}),
    "cityscapes/mask_*": ({"segm": ["AP", "AP50"]}, {"loss_mask"}),
    "cityscapes/semantic_*": ({"sem_seg": ["IoU", "IoU_sup"]}, set()),  # one loss: the total
}
QUICK = {  # one of each family; the others differ in numbers alone
    "coco/mask_rcnn_R_50_C4_1x.yaml",
    "coco/mask_rcnn_R_50_FPN_1x.yaml",
    "coco/retinanet_R_50_FPN_1x.yaml",
    "coco/keypoint_rcnn_R_50_FPN_2x.yaml",
    "coco_low_data/retinanet_R_50_FPN_10percent_12k.yaml",
    "voc/faster_rcnn_R_50_C4_24k.yaml",
    "cityscapes/mask_rcnn_R_50_FPN_24k.yaml",
    SEGMENTATION,
}
PROTOCOLS = [
    pytest.param(config, kind, marks=[] if config in QUICK else pytest.mark.slow)
    for kind in METRICS
    for config in sorted(glob.glob(f"{kind}.yaml", root_dir=os.path.join(ROOT, "configs")))
]
DETECTORS = [
    f"coco/{name}_1x.yaml"
    for name in ("mask_rcnn_R_50_C4", "mask_rcnn_R_50_FPN", "retinanet_R_50_FPN")
]


@pytest.fixture(scope="module")
def pretrained_50(scenes, tmp_path_factory):
    """A narrow ResNet-50 after two steps of DetCo."""
    output = str(tmp_path_factory.mktemp("pretrained"))
    data = ["DATASETS.TRAIN", (register_scenes(scenes, "train"),), "OUTPUT_DIR", output]
    PretrainTrainer(tiny_config(*data, "SOLVER.MAX_ITER", 2)).train()
    return os.path.join(output, "model_final.pth")


def train(config, output, *settings):
    cfg = load_config(config, "OUTPUT_DIR", str(output), *SMALL, *settings)
    os.makedirs(output, exist_ok=True)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer, trainer.train()


def train_on_scenes(scenes, output, *settings):
    sets = [(register_scenes(scenes, split),) for split in ("train", "test")]
    data = ["DATASETS.TRAIN", sets[0], "DATASETS.TEST", sets[1], "MODEL.ROI_HEADS.NUM_CLASSES", 4]
    return train("demo/faster_rcnn_R_18_FPN.yaml", output, *data, *settings)


def register_coco_subset(name, count, folder):
    """Register some images of a COCO data set, whose annotation file is written to the folder."""
    metadata = MetadataCatalog.get(name)
    with open(metadata.json_file) as file:
        content = json.load(file)
    content["images"] = seeded_subset(content["images"], count, 0)
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    subset = f"{name}_subset_of_{folder.name}"
    file = folder / f"{subset}.json"
    file.write_text(json.dumps(content))
    register_coco_instances(subset, {}, str(file), metadata.image_root)
    return subset


@pytest.mark.parametrize("config", DETECTORS)
def test_three_detectors_learn_from_real_images(real_data, pretrained_50, tmp_path, config):
    for split in ("train", "val"):  # at import Detectron2 may have seen another data folder
        metadata = MetadataCatalog.get(f"coco_2017_{split}")
        assert os.path.isfile(metadata.json_file), metadata.json_file
    data = ["DATASETS.TRAIN", (register_coco_subset("coco_2017_train", 8, tmp_path),)]
    data += ["DATASETS.TEST", (register_coco_subset("coco_2017_val", 4, tmp_path),)]
    _, results = train(config, tmp_path / "out", "MODEL.WEIGHTS", pretrained_50, *data)
    assert 0 <= results["bbox"]["AP"] <= 100
    assert "mask" not in config or 0 <= results["segm"]["AP"] <= 100
    assert os.path.isfile(tmp_path / "out" / "model_final.pth")


@pytest.mark.parametrize("config, kind", PROTOCOLS)
def test_every_protocol_runs_on_its_data(standard_data, pretrained_50, tmp_path, config, kind):
    settings = ["MODEL.WEIGHTS", pretrained_50]
    if config == SEGMENTATION:
        settings += SMALL_CROPS
    trainer, results = train(config, tmp_path, *settings)
    metrics, losses = METRICS[kind]
    assert set(results) == set(metrics)
    for task, names in metrics.items():
        for name in names:
            assert 0 <= results[task][name] <= 100, (task, name)
    histories = trainer.storage.histories()
    assert losses <= set(histories)
    for name in ("total_loss", *losses):
        values = [value for value, _ in histories[name].values()]
        assert values and all(math.isfinite(value) for value in values), (name, values)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True, mmap=True)
    assert final["iteration"] == 1
    assert final["input_spec"]["INPUT.FORMAT"] == "RGB"
    (tmp_path / "model_final.pth").unlink()  # 300 MB, which pytest would keep


def test_every_protocol_is_under_test():
    files = glob.glob("*/*_R_50_*.yaml", root_dir=os.path.join(ROOT, "configs"))
    files = {file for file in files if file.split(os.sep)[0] not in ("demo", "quick")}
    assert {parameter.values[0] for parameter in PROTOCOLS} == files
    assert QUICK <= files


def test_segmentation_scales_first_and_crops_then():
    """So a crop has the same size in pixels at every scale, and shows less of a larger image."""
    cfg = load_config(SEGMENTATION)
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32).repeat(32, 1).repeat(64, 0)
    image = np.stack([labels] * 3, axis=2)  # 512 x 1024 pixels; each block has its own label
    shares = []
    for size in (512, 1024, 2048):
        cfg.INPUT.MIN_SIZE_TRAIN = (size, size)
        np.random.seed(0)
        view = AugInput(image, sem_seg=labels)
        build_mapper(cfg).augmentations(view)
        assert view.image.shape == (min(size, 769), 769, 3)
        assert view.sem_seg.shape == view.image.shape[:2]
        assert (view.image[..., 0] == view.sem_seg).mean() > 0.7  # both went the same way
        shares.append(len(np.unique(view.sem_seg)))
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] / 5


def test_detectors_have_detectron2s_own_augmentations():
    cfg = load_config(DETECTORS[0])
    names = [type(step).__name__ for step in build_mapper(cfg).augmentations.augs]
    assert names == ["ResizeShortestEdge", "RandomFlip"]


@pytest.mark.parametrize("format, first", [("RGB", 85), ("BGR", 170)])
def test_training_and_evaluation_see_the_pixels_of_pretraining(tmp_path, format, first):
    """16 bits are scaled, and what is transparent is white; to Detectron2 it is white and black."""
    grey = np.tile(np.array([0, 85, 170, 255], np.uint16) * 257, (4, 1))
    clear = np.full((4, 4, 4), [85, 0, 170, 255], np.uint8)
    clear[:, 2:] = 0
    cfg = load_config(DETECTORS[0], "INPUT.FORMAT", format)
    cfg.INPUT.MIN_SIZE_TRAIN = (4,)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = 4, "none"
    for name, pixels, row in (
        ("grey", grey, (0, 85, 170, 255)),
        ("clear", clear, (first, first, 255, 255)),
    ):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        for is_train in (True, False):
            found = DatasetMapper(cfg, is_train)({"file_name": str(tmp_path / f"{name}.png")})
            assert tuple(found["image"][0, 0].tolist()) == row


def test_evaluation_alone_gives_what_training_gave(scenes, tmp_path):
    trainer, trained = train_on_scenes(scenes, tmp_path)

    def predictions():
        found = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
        return [f["score"] for f in found], [f["bbox"] for f in found]

    scores, boxes = predictions()
    assert len(scores) > 10
    cfg = trainer.cfg.clone()
    cfg.defrost()
    assert check_output_dir(cfg, resume=False, overwrite=False) is True  # the same run goes on
    cfg.SOLVER.BASE_LR = 0.5
    with pytest.raises(ValueError, match="holds a run of another config(.|\n)*SOLVER.BASE_LR"):
        check_output_dir(cfg, resume=False, overwrite=False)
    lines = (tmp_path / "metrics.json").read_text()  # the AP of a class without boxes is none
    assert "NaN" not in lines and "bbox/AP" in json.loads(lines.splitlines()[-1])
    with pytest.raises(ValueError, match="nothing to evaluate: set MODEL.WEIGHTS"):
        load_detector(cfg, resume=False)
    cfg.MODEL.WEIGHTS, width = str(tmp_path / "model_final.pth"), cfg.MODEL.ROI_BOX_HEAD.FC_DIM
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = width + 1
    with pytest.raises(ValueError, match=r"lack \d+ of the model's .* in another shape, such as"):
        load_detector(cfg, resume=False)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = width
    for resume in (False, True):
        (tmp_path / "inference" / "coco_instances_results.json").unlink()
        results = TransferTrainer.test(*load_detector(cfg, resume=resume))
        assert predictions() == (pytest.approx(scores), [pytest.approx(box) for box in boxes])
        assert results["bbox"] == pytest.approx(trained["bbox"], nan_ok=True)


def test_a_resumed_fine_tuning_continues_at_its_iteration(scenes, tmp_path):
    cfg = train_on_scenes(scenes, tmp_path)[0].cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 4
    second = TransferTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 2
    optimizer = second.optimizer.state_dict()["state"]
    assert optimizer and all("momentum_buffer" in state for state in optimizer.values())
    third = TransferTrainer(cfg)  # with the scaler of a GPU, which the run did not have
    third._trainer.grad_scaler = scaler = torch.amp.GradScaler("cpu")
    third._trainer.load_state_dict = lambda state: scaler.load_state_dict(state["grad_scaler"])
    third.resume_or_load(resume=True)


def test_mixed_precision_on_the_cpu_is_bfloat16_and_close_to_float32(scenes, tmp_path):
    losses, dtypes = [], set()
    for enabled in (False, True):
        seed_all_rng(0)  # the same start, images and anchors for both
        settings = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.AMP.ENABLED", enabled]
        trainer, _ = train_on_scenes(scenes, tmp_path, *settings)
        losses.append(trainer.storage.history("loss_rpn_cls").latest())
        stem = trainer.model.backbone.bottom_up.stem
        stem.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
        trainer.model.eval()([{"image": torch.zeros(3, 64, 64)}])
    assert dtypes == {torch.float32, torch.bfloat16}
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_the_evaluator_follows_the_metadata(scenes, tmp_path):
    cfg = load_config(DETECTORS[0], "OUTPUT_DIR", str(tmp_path))
    evaluator = TransferTrainer.build_evaluator(cfg, register_scenes(scenes, "test"))
    assert isinstance(evaluator, COCOEvaluator)
    name = "voc_2007_test"
    if os.path.isdir(os.path.join(MetadataCatalog.get(name).dirname, "ImageSets")):
        assert isinstance(TransferTrainer.build_evaluator(cfg, name), PascalVOCDetectionEvaluator)
    MetadataCatalog.get("detco_untyped").set(evaluator_type="tea")
    with pytest.raises(ValueError, match="evaluator_type is 'tea'"):
        TransferTrainer.build_evaluator(cfg, "detco_untyped")
