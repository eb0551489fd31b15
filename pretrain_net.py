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
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.engine.launch import launch, num_processes
from detco_d2.engine.machine import adapt_to_machine
from detco_d2.engine.preflight import check_output_dir, check_run, check_weights
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.record import note_start


def read_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    check_detco_config(cfg)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = read_config(args)
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="detco_d2", abbrev_name="detco")
    adapt_to_machine(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)
    note_start(cfg)
    return cfg


def main(args: argparse.Namespace) -> Any:
    trainer = PretrainTrainer(setup(args))
    trainer.resume_or_load(resume=comm.all_gather(args.resume)[0])
    return trainer.train()


def run() -> None:
    parser = default_argument_parser()
    parser.add_argument("--overwrite", action="store_true", help="remove a run in OUTPUT_DIR first")
    arguments = parser.parse_args()
    if not os.path.isfile(arguments.config_file):
        sys.exit(f"--config-file {arguments.config_file!r} is no file; try configs/detco.yaml")
    if arguments.eval_only:
        sys.exit("Pretraining has nothing to evaluate; --eval-only is for train_net.py.")
    try:
        config = read_config(arguments)
        check_weights(config)
        processes = num_processes(arguments)
        # under torchrun once on a machine, and once in all; what rank 0 finds here, main() shares
        if os.environ.get("LOCAL_RANK", "0") == "0":
            check_run(config, processes)
        if os.environ.get("RANK", "0") == "0":
            arguments.resume = check_output_dir(config, arguments.resume, arguments.overwrite)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"pretrain_net: {error}")
    launch(main, arguments, config.SOLVER.COLLECTIVE_TIMEOUT)


if __name__ == "__main__":
    run()
