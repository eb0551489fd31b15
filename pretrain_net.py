#!/usr/bin/env python
"""Pretrain a backbone with DetCo (or MoCo v2) on unlabelled images.

python pretrain_net.py --config-file configs/detco.yaml --num-gpus 8 \\
    DATASETS.TRAIN '("/my/photos",)' SOLVER.MAX_EPOCHS 200
"""

import argparse
import os
import sys
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.engine.launch import ends_with_one_line, launch, num_processes, parse_arguments
from detco_d2.engine.output_dir import add_overwrite_flag, check_output_dir
from detco_d2.engine.preflight import check_run, check_weights
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.record import set_up


def read_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    check_detco_config(cfg)
    return cfg


def main(args: argparse.Namespace) -> Any:
    trainer = PretrainTrainer(set_up(read_config(args), args))
    trainer.resume_or_load(resume=comm.all_gather(args.resume)[0])
    return trainer.train()


def run() -> None:
    args = parse_arguments(add_overwrite_flag(default_argument_parser()))
    if args.eval_only:
        sys.exit("Pretraining has nothing to evaluate; --eval-only is for train_net.py.")
    with ends_with_one_line("pretrain_net"):
        cfg = read_config(args)
        check_weights(cfg)
        processes = num_processes(args)
        # under torchrun once on a machine, and once in all; what rank 0 finds here, main() shares
        if os.environ.get("LOCAL_RANK", "0") == "0":
            check_run(cfg, processes)
        if os.environ.get("RANK", "0") == "0":
            args.resume = check_output_dir(cfg, args.resume, args.overwrite)
    launch(main, args, cfg.SOLVER.COLLECTIVE_TIMEOUT)


if __name__ == "__main__":
    run()
