#!/usr/bin/env python
"""Fine-tune a detector from a pretrained backbone, and evaluate it.

python train_net.py --config-file configs/coco/mask_rcnn_R_50_FPN_1x.yaml --num-gpus 8 \\
    MODEL.WEIGHTS output/detco/model_final.pth
"""

import argparse
import json
import os
import sys
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from detco_d2.config import apply_supervised_baseline, load_config
from detco_d2.data.datasets import prepare_datasets, register_by_name
from detco_d2.engine.launch import launch
from detco_d2.engine.machine import adapt_to_machine
from detco_d2.engine.preflight import check_weights
from detco_d2.engine.record import note_start
from detco_d2.engine.transfer import TransferTrainer, evaluate
from detco_d2.files import replacing


def read_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    apply_supervised_baseline(cfg)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = read_config(args)
    register_by_name([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="detco_d2", abbrev_name="detco")
    adapt_to_machine(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)
    note_start(cfg)
    return cfg


def main(args: argparse.Namespace) -> Any:
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    results = trainer._last_eval_results
    if comm.is_main_process():  # complete or not there: tools/benchmark.py takes it for "done"
        with replacing(os.path.join(cfg.OUTPUT_DIR, "results.json")) as file:
            file.write_text(json.dumps(results, indent=1, default=float))
    return results


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    if not os.path.isfile(arguments.config_file):
        sys.exit(f"--config-file {arguments.config_file!r} is no file; see configs/")
    try:
        config = read_config(arguments)
        check_weights(config)
        names = config.DATASETS
        prepare_datasets([] if arguments.eval_only else names.TRAIN, names.TEST)
    except (ValueError, OSError) as error:
        sys.exit(f"train_net: {error}")
    launch(main, arguments)
