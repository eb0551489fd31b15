#!/usr/bin/env python
"""Fine-tune a detector from a pretrained backbone, and evaluate it.

python train_net.py --config-file configs/coco/mask_rcnn_R_50_FPN_1x.yaml --num-gpus 8 \\
    MODEL.WEIGHTS output/detco/model_final.pth
"""

import argparse
import os
from typing import Any

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detco_d2.config import load_config
from detco_d2.data.datasets import register_by_name
from detco_d2.engine.labels import follow_data
from detco_d2.engine.launch import ends_with_one_line, launch, num_processes, parse_arguments
from detco_d2.engine.output_dir import add_overwrite_flag, check_output_dir
from detco_d2.engine.preflight import check_learns, check_weights
from detco_d2.engine.record import set_up
from detco_d2.engine.transfer import TransferTrainer, load_detector
from detco_d2.files import replacing, to_json


def main(args: argparse.Namespace) -> Any:
    cfg = load_config(args.config_file, args.opts)
    register_by_name([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    cfg = set_up(cfg, args)
    with ends_with_one_line("train_net"):
        if args.eval_only:
            found = load_detector(cfg, resume=args.resume)
        else:
            trainer = TransferTrainer(cfg)
            trainer.resume_or_load(resume=comm.all_gather(args.resume)[0])
    if args.eval_only:
        return TransferTrainer.test(*found)
    results = trainer.train()
    if comm.is_main_process():  # complete or not there: tools/benchmark.py takes it for "done"
        with replacing(os.path.join(cfg.OUTPUT_DIR, "results.json")) as file:
            file.write_text(to_json(results, indent=1))
    return results


if __name__ == "__main__":
    args = parse_arguments(add_overwrite_flag(default_argument_parser()))
    with ends_with_one_line("train_net"):
        processes = num_processes(args)
        cfg = load_config(args.config_file, args.opts)
        check_weights(cfg)
        folder = cfg.OUTPUT_DIR if args.resume else os.path.dirname(cfg.MODEL.WEIGHTS)
        detector = folder if args.eval_only else None
        args.opts += follow_data(cfg, detector, given=args.opts[::2])
        if not (args.eval_only or args.resume):
            check_learns(cfg, processes, refuse=False)
        if not args.eval_only and os.environ.get("RANK", "0") == "0":
            cfg = load_config(args.config_file, args.opts)
            args.resume = check_output_dir(cfg, args.resume, args.overwrite)
    launch(main, args)
