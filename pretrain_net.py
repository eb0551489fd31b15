#!/usr/bin/env python
"""Pretrain a backbone with DetCo (or MoCo v2) on unlabelled images.

python pretrain_net.py --config-file configs/detco.yaml --num-gpus 8 \\
    DATASETS.TRAIN '("/my/photos",)' SOLVER.MAX_EPOCHS 200
"""

import argparse
import logging
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
from detco_d2.engine.pretrain import PretrainTrainer, recipe_pairs
from detco_d2.engine.record import set_up

logger = logging.getLogger("detco_d2.pretrain_net")


def read_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, [*args.opts, *args.recipe])
    check_detco_config(cfg, is_open=True)
    return cfg


def main(args: argparse.Namespace) -> Any:
    args.resume, args.recipe = comm.all_gather((args.resume, args.recipe))[0]
    cfg = set_up(read_config(args), args)
    if args.recipe:
        logger.info("For these images: %s", " ".join(map(repr, args.recipe)))
    trainer = PretrainTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run() -> None:
    parser = add_overwrite_flag(default_argument_parser())
    parser.set_defaults(recipe=[])
    args = parse_arguments(parser)
    if args.eval_only:
        sys.exit("Pretraining has nothing to evaluate; --eval-only is for train_net.py.")
    with ends_with_one_line("pretrain_net"):
        cfg = read_config(args)
        check_weights(cfg)
        processes = num_processes(args)
        # under torchrun once on a machine, and once in all; what rank 0 finds here, main() shares
        if os.environ.get("LOCAL_RANK", "0") == "0":
            args.recipe = recipe_pairs(cfg, check_run(cfg, processes))
        if os.environ.get("RANK", "0") == "0":
            args.resume = check_output_dir(read_config(args), args.resume, args.overwrite)
    launch(main, args, cfg.SOLVER.COLLECTIVE_TIMEOUT)


if __name__ == "__main__":
    run()
