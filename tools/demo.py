#!/usr/bin/env python
"""The main job, small: DetCo pretraining, conversion, fine-tuning from random and from DetCo.

python tools/demo.py                                  # rendered scenes, or coco/ if it is there
python tools/demo.py --images /my/photos              # pretrain on one's own images
python tools/demo.py --voc /data/bccd --fraction 0.2 --seeds 3    # detection data in VOC's layout

Writes report.json and, with curves and pictures, report.html into --output.
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from detco_d2.config import load_config
from detco_d2.data.datasets import (
    load_images,
    register_by_name,
    register_coco_subset,
    register_voc_folder,
)
from detco_d2.engine.machine import adapt_to_machine
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.record import command_line, note_start, remove_run, versions
from detco_d2.engine.transfer import TransferTrainer
from detco_d2.reports.transfer_summary import METRICS, summarise_transfer, write_report
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone
from detco_d2.weights.frozen import check_complete

ROOT = Path(__file__).resolve().parent.parent
_SHOWN = 60  # images that feature pictures are made of
_SIDE = 300  # pixels
logger = logging.getLogger("detco_d2.demo")


def demo_config(file: str, num_gpus: int, **settings: Any) -> CfgNode:
    pairs = [item for pair in settings.items() for item in pair]
    cfg = load_config(str(ROOT / "configs" / "demo" / file), pairs)
    adapt_to_machine(cfg, num_gpus)
    return cfg


def choose_data(args: argparse.Namespace) -> tuple[list[str], str, str, str]:
    """Names of the pretraining images, of the training and the test set, and a description."""
    coco = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco")
    if args.voc:
        unlabelled = register_voc_folder(args.voc, "trainval")
        train = register_voc_folder(args.voc, "trainval", args.fraction, seed=0)
        test = register_voc_folder(args.voc, "test")
        what = f"{args.voc}, {args.fraction:.0%} of trainval, evaluated on test"
    elif coco.is_dir():
        folder = os.path.join(args.output, "data")
        train = unlabelled = register_coco_subset("coco_2017_train", 100, 0, folder)
        test = register_coco_subset("coco_2017_val", 100, 0, folder)
        what = f"at most 100 + 100 images of {coco}"
    else:
        folder = os.path.abspath(os.path.join(args.output, "data"))
        unlabelled, train, test = (
            f"scenes_{split}@{folder}" for split in ("unlabelled_600", "train_100", "test_100")
        )
        register_by_name([unlabelled, train, test])
        what = "rendered scenes: 600 unlabelled, 100 for training, 100 for evaluation"
    return args.images or [unlabelled], train, test, what


def pretrain(args: argparse.Namespace, names: list[str]) -> tuple[str, CfgNode]:
    """Returns the checkpoint and its config."""
    settings: dict[str, Any] = {"DATASETS.TRAIN": tuple(names)}
    if args.pretrain_iters:
        settings["SOLVER.MAX_ITER"] = args.pretrain_iters
    if args.queue_length:
        settings["MODEL.DETCO.QUEUE_LENGTH"] = args.queue_length
    cfg = demo_config("detco_R_18.yaml", args.num_gpus, **settings)
    if not args.queue_length:
        half = len(load_images(names)) // 2
        cfg.MODEL.DETCO.QUEUE_LENGTH = min(cfg.MODEL.DETCO.QUEUE_LENGTH, half)
    cfg.OUTPUT_DIR = os.path.join(args.output, "pretrain")
    cfg.merge_from_list(args.opts)
    seed_all_rng(cfg.SEED)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    remove_run(folder)  # of an earlier demo
    (folder / "config.yaml").write_text(cfg.dump())
    trainer = PretrainTrainer(cfg)
    note_start(cfg)
    trainer.train()
    return str(folder / "model_final.pth"), trainer.cfg


def finetune(
    args: argparse.Namespace, train: str, test: str, init: str, weights: str, seed: int
) -> tuple[dict[str, Any], TransferTrainer]:
    cfg = demo_config("faster_rcnn_R_18_FPN.yaml", args.num_gpus)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(_classes(train))
    cfg.MODEL.WEIGHTS, cfg.SEED = weights, seed
    if args.finetune_iters:
        total = cfg.SOLVER.MAX_ITER = args.finetune_iters
        cfg.SOLVER.STEPS = tuple(sorted({int(total * 0.8), int(total * 0.93)}))
    cfg.OUTPUT_DIR = os.path.join(args.output, f"finetune_{init}_seed{seed}")
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(seed)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    box = trainer._last_eval_results["bbox"]  # NaN where nothing was predicted: an AP of 0
    result = {metric: float(np.nan_to_num(box[metric])) for metric in METRICS}
    return {"init": init, "seed": seed, **result}, trainer


def _classes(name: str) -> list[str]:
    DatasetCatalog.get(name)  # a COCO file's classes are known once it is read
    return MetadataCatalog.get(name).thing_classes


def draw_detections(trainer: TransferTrainer, test: str, file: Path, count: int = 4) -> None:
    """The five best detections on each of the first test images, side by side."""
    model = trainer.model.eval()
    pictures = []
    for data in trainer.build_test_loader(trainer.cfg, test):
        with torch.no_grad():
            found = model(data)[0]["instances"].to("cpu")
        best = found.scores.argsort(descending=True)[:5]
        image = detection_utils.read_image(data[0]["file_name"], "RGB")
        drawn = Visualizer(image, MetadataCatalog.get(test)).draw_instance_predictions(found[best])
        pictures.append(Image.fromarray(drawn.get_image()).resize((_SIDE, _SIDE)))
        if len(pictures) == count:
            break
    strip = Image.new("RGB", (_SIDE * len(pictures), _SIDE))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (_SIDE * i, 0))
    strip.save(file)


def show(args: argparse.Namespace, checkpoint: str, names: list[str]) -> None:
    """What the features see, and the page about it all, by the tools for any run."""
    files = [image["file_name"] for image in load_images(names)]
    files = files[:: max(1, len(files) // _SHOWN)]
    run = os.path.dirname(checkpoint)
    weights = ["--weights", "random", "--weights", f"DetCo={checkpoint}"]
    page = os.path.join(args.output, "report.html")
    for tool, *options in (
        ("visualize.py", "all", *weights, "--images", *files),
        ("report.py", run, "--transfer", args.output, "--output", page),
    ):
        subprocess.run([sys.executable, str(ROOT / "tools" / tool), *options], check=True)


class Progress:
    """Says before each phase what it is and how long the rest should take."""

    def __init__(self, phases: Sequence[tuple[str, float]]) -> None:
        """
        Args:
            phases: name and usual seconds on two cores, scaled by what has been measured.
        """
        self.phases = phases
        self.started: list[float] = []

    def next(self) -> None:
        self.started.append(time.perf_counter())
        current = len(self.started) - 1
        done = sum(seconds for _, seconds in self.phases[1:current])  # data may be there already
        rest = sum(seconds for _, seconds in self.phases[current:])
        scale = (self.started[-1] - self.started[1]) / done if done else 1.0
        left = f"about {rest * scale / 60:.0f} min left"
        logger.info("[%d/%d] %s, %s", current + 1, len(self.phases), self.phases[current][0], left)

    def seconds(self) -> dict[str, float]:
        ends = [*self.started[1:], time.perf_counter()]
        return {name: e - s for (name, _), s, e in zip(self.phases, self.started, ends)}


def run(args: argparse.Namespace) -> str:
    runs_of = [(init, seed) for seed in range(args.seeds) for init in ("random", "DetCo")]
    tuning = [(f"fine-tuning {init} {seed}", 170) for init, seed in runs_of]
    progress = Progress([("data", 30), ("pretraining", 230), *tuning, ("report", 60)])
    progress.next()
    names, train, test, what = choose_data(args)
    progress.next()
    checkpoint, cfg = pretrain(args, names)
    backbone = read_backbone(checkpoint)
    logger.info("%s\n%s", backbone, check_complete(backbone))
    weights = os.path.join(args.output, "backbone.pth")
    save_backbone(weights, backbone.tensors, backbone.spec)
    runs = []
    for init, seed in runs_of:
        progress.next()
        result, trainer = finetune(
            args, train, test, init, weights if init == "DetCo" else "", seed
        )
        runs.append(result)
    progress.next()
    if runs:
        folder = Path(checkpoint).with_name("pictures")
        folder.mkdir(exist_ok=True)
        draw_detections(trainer, test, folder / "detections_of_DetCo.png")
    report = {
        "description": f"Pretrained on {', '.join(names)} for {cfg.SOLVER.MAX_ITER} iterations of "
        f"{cfg.SOLVER.IMS_PER_BATCH} images; detection data: {what}.",
        "command": command_line(),
        "transfer": summarise_transfer(runs),
        "runs": runs,
        "seconds": progress.seconds(),
        "versions": versions(),
    }
    text = write_report(args.output, report)
    show(args, checkpoint, names)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder for everything written")
    parser.add_argument("--images", action="append", help="folder to pretrain on; repeatable")
    parser.add_argument("--voc", help="detection data: a folder in PASCAL VOC's layout")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of --voc's trainval")
    parser.add_argument(
        "--seeds", type=int, default=1, help="fine-tuning runs of each kind; 0: none"
    )
    parser.add_argument("--pretrain-iters", type=int, help="default: as in the config")
    parser.add_argument("--finetune-iters", type=int, help="default: as in the config")
    parser.add_argument("--queue-length", type=int, help="default: 256, at most half the images")
    parser.add_argument("--num-gpus", type=int, default=0, help="0: CPU; 1: one GPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for pretraining")
    args = parser.parse_args()
    Path(args.output).mkdir(parents=True, exist_ok=True)
    for name, short in (("detectron2", "d2"), ("fvcore", None), ("detco_d2", "detco")):
        setup_logger(args.output, name=name, abbrev_name=short)
    text = run(args)
    logger.info("\n%s", text)
    logger.info("Curves and pictures: %s", os.path.join(args.output, "report.html"))


if __name__ == "__main__":
    main()
