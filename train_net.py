#!/usr/bin/env python
"""Fine-tune a detector from a pretrained backbone, and evaluate it.

python train_net.py --config-file configs/coco/mask_rcnn_R_50_FPN_1x.yaml --num-gpus 8 \\
    MODEL.WEIGHTS output/detco/model_final.pth
"""

import argparse
import json
import os
from typing import Any

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detco_d2.config import load_config
from detco_d2.data.datasets import register_by_name
from detco_d2.engine.labels import follow_data
from detco_d2.engine.launch import ends_with_one_line, launch, parse_arguments
from detco_d2.engine.preflight import check_weights
from detco_d2.engine.record import set_up
from detco_d2.engine.transfer import TransferTrainer, evaluate
from detco_d2.files import replacing


def main(args: argparse.Namespace) -> Any:
    cfg = load_config(args.config_file, args.opts)
    register_by_name([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    cfg = set_up(cfg, args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    trainer = TransferTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if comm.is_main_process():  # complete or not there: tools/benchmark.py takes it for "done"
        with replacing(os.path.join(cfg.OUTPUT_DIR, "results.json")) as file:
            file.write_text(json.dumps(results, indent=1, default=float))
    return results


if __name__ == "__main__":
    args = parse_arguments(default_argument_parser())
    with ends_with_one_line("train_net"):
        cfg = load_config(args.config_file, args.opts)
        check_weights(cfg)
        folder = cfg.OUTPUT_DIR if args.resume else os.path.dirname(cfg.MODEL.WEIGHTS)
        detector = folder if args.eval_only else None
        args.opts += follow_data(cfg, detector, given=args.opts[::2])
    launch(main, args)
