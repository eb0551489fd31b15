#!/usr/bin/env python
"""The transfer benchmark: fine-tune every initialisation on every task, and write the table.

python tools/benchmark.py --suite paper --seeds 5 --num-gpus 8 \\
    --init random --init detco=detco.pth --init supervised=R-50.pkl
python tools/benchmark.py --suite quick --init random --init detco=r18.pth      # rendered scenes
python tools/benchmark.py --suite quick --init random --init detco=r18.pth \\
    --data /data/bccd:trainval /data/bccd:test --fraction 0.2 --fraction 1      # one's own data
python tools/benchmark.py --suite configs/coco/*_12k.yaml --init detco=detco.pth

Call it again to go on: runs that are done stay, cut-off runs resume, failed ones are tried again.
A weight file brings its own input settings. --shard i/n runs every n-th cell, for other machines or
a SLURM array on the same --output.
"""

import argparse
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detco_d2.config import load_config
from detco_d2.config_files import flatten
from detco_d2.data.datasets import prepare_datasets
from detco_d2.engine.launch import tool_parser
from detco_d2.engine.record import command_line
from detco_d2.files import at_home
from detco_d2.reports.benchmark import (
    Cell,
    Task,
    check_claim,
    claim,
    file_digest,
    plan,
    read_result,
    with_seed,
)
from detco_d2.reports.tables import write_report
from detco_d2.weights.backbone import read_backbone

ROOT = Path(__file__).resolve().parent.parent
SUITES = {"paper": ["voc", "coco", "cityscapes", "coco_low_data"], "quick": ["quick"]}
SCENES = {"quick": 400, "demo": 100}  # rendered for training, by the folder of a config
# Keys of a merged config that do not decide the result.
IRRELEVANT = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "VIS_PERIOD")
logger = logging.getLogger("detco_d2.benchmark")


def find_configs(suite: list[str]) -> list[Path]:
    if suite[0] in SUITES:
        folders = [ROOT / "configs" / name for name in SUITES[suite[0]]]
        return [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    if missing := [file for file in suite if not Path(file).is_file()]:
        raise ValueError(f"--suite names {missing}: no files, and no suite of {list(SUITES)}.")
    return [Path(file).resolve() for file in suite]


def _with_data(file: Path, name: str, train: str, test: str) -> Task:
    prepare_datasets([train], [test])
    settings = "DATASETS.TRAIN", repr((train,)), "DATASETS.TEST", repr((test,))
    return Task(name, str(file), settings)


def make_tasks(args: argparse.Namespace) -> list[Task]:
    """Every config: on the data of --data, on rendered scenes (quick, demo), or on its own."""
    tasks = []
    for file in find_configs(args.suite):
        if args.data:
            train, test = args.data
            kind = Path(train.partition(":")[0]).stem
            for fraction in args.fraction or [1.0]:
                name = f"{kind}/{file.stem}_{100 * fraction:g}percent"
                share = f"{train}%{100 * fraction:g}" if fraction != 1 else train
                tasks.append(_with_data(file, name, share, test))
        elif count := SCENES.get(file.parent.name):
            root = str((args.output / "scenes").absolute())
            train, test = f"scenes_train_{count}@{root}", f"scenes_test_100@{root}"
            tasks.append(_with_data(file, f"scenes/{file.stem}", train, test))
        else:
            tasks.append(Task(f"{file.parent.name}/{file.stem}", str(file)))
    return tasks


@functools.cache
def read_spec(path: str) -> dict[str, Any]:
    """The input settings of a weight file; of "", the random start, none."""
    return read_backbone(path).spec if path else {}


def cell_settings(args: argparse.Namespace, cell: Cell) -> tuple[list[str], dict[str, Any]]:
    """The KEY VALUE pairs of a cell's run, and the identity of its result.

    Raises:
        ValueError, FileNotFoundError: data or weights that are not there.
    """
    path, depth = args.init[cell.init], "MODEL.RESNETS.DEPTH"
    own = [str(item) for pair in read_spec(path).items() if pair[0] != depth for item in pair]
    settings = [*cell.task.settings, "MODEL.WEIGHTS", path, *own, *args.opts]
    settings += ["SEED", str(cell.seed)]
    cfg = load_config(cell.task.config, settings)
    has, wants = read_spec(path).get(depth), cfg.MODEL.RESNETS.DEPTH
    if has not in (None, wants):
        raise ValueError(
            f"--init {cell.init} is a ResNet-{has}, and {cell.task.config} has a ResNet-{wants}; "
            "name another --suite, or config files."
        )
    period = -(-cfg.SOLVER.MAX_ITER // args.evaluations)
    more = ["DATASETS.TRAIN", repr(with_seed(cfg.DATASETS.TRAIN, cell.seed))]
    more += ["TEST.EVAL_PERIOD", str(period)]
    cfg.merge_from_list(more)
    prepare_datasets(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    identity = dict(flatten(json.loads(json.dumps(cfg))))  # values as JSON keeps them
    identity.update({"weights": file_digest(path), "MODEL.WEIGHTS": Path(path).name})
    for key in IRRELEVANT:
        identity.pop(key)
    return [*settings, *more], identity


def run_cell(args: argparse.Namespace, cell: Cell, settings: list[str], progress: tqdm) -> bool:
    """Fine-tune and evaluate one cell in a process of its own; whether it succeeded."""
    folder = cell.folder(args.output)
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", cell.task.config]
    command += ["--num-gpus", str(args.num_gpus), "--dist-url", "auto"]
    command += ["--resume"] if (folder / "last_checkpoint").is_file() else []
    console = folder / "console.txt"
    code = run_training([*command, *settings, "OUTPUT_DIR", str(folder)], console, progress)
    if code:
        tail = "\n  ".join(console.read_text(errors="replace").strip().splitlines()[-3:])
        logger.error("FAILED with exit code %d; %s ends with:\n  %s", code, console, tail)
    return code == 0


def run_training(command: list[str], console: Path, progress: tqdm) -> int:
    """Run a command with its output in a file, and show what the file says is left."""
    with open(console, "a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while True:
            try:
                return process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                lines = re.findall(r"eta: \S+ +iter: \d+", console.read_text(errors="replace"))
                progress.set_postfix_str(lines[-1] if lines else "")
    finally:
        process.kill()  # nothing, once it has ended


def run_all(args: argparse.Namespace, cells: list[Cell]) -> int:
    """Run what is missing; returns how many cells failed."""
    todo = []
    for cell in cells:  # everything is checked before anything runs
        settings, identity = cell_settings(args, cell)
        check_claim(cell.folder(args.output), identity)
        if read_result(cell, args.output)["status"] != "done":
            todo.append((cell, settings, identity))
    logger.info("%d cells, of which %d are done", len(cells), len(cells) - len(todo))
    failed = 0
    progress = tqdm(todo, unit="cell")
    with logging_redirect_tqdm([logging.getLogger("detco_d2")]):
        for cell, settings, identity in progress:
            progress.set_description(str(cell))
            claim(cell.folder(args.output), identity)
            if run_cell(args, cell, settings, progress):
                logger.info("%s: %s", cell, read_result(cell, args.output)["metrics"])
            else:
                failed += 1
    return failed


def parse_init(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[\w.+ -]+", name) or (not path and name != "random"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `random` nor NAME=WEIGHT_FILE")
    return name, os.path.abspath(PathManager.get_local_path(path)) if path else ""


def main() -> None:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--suite", nargs="+", required=True, help=f"{', '.join(SUITES)}, or config files")
    add("--init", action="append", type=parse_init, required=True, help="random, or NAME=FILE")
    add("--seeds", type=int, default=5, help="runs of each (the paper's field uses 5)")
    add("--num-gpus", type=int, default=0, help="for each run; 0: CPU")
    add("--output", type=Path, default=Path("output/benchmark"))
    add("--shard", default="0/1", help="i/n: run only the i-th of every n cells, from 0")
    add("--evaluations", type=int, default=4, help="of each run, evenly spaced to its end")
    add("--data", nargs=2, metavar=("TRAIN", "TEST"), help="names of data, not the configs' own")
    add("--fraction", type=float, action="append", help="share of TRAIN; repeatable")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="last: KEY VALUE pairs for every run")
    args = parser.parse_args(at_home(sys.argv[1:]))
    if len(dict(args.init)) < len(args.init):
        parser.error("--init has one name twice; give each a NAME=FILE of its own")
    if args.fraction and not args.data:
        parser.error("--fraction is a share of --data, which is not given")
    if min(args.evaluations, args.seeds) < 1:
        parser.error("--evaluations and --seeds must be at least 1")
    args.init = dict(args.init)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the training, too
    args.output.mkdir(parents=True, exist_ok=True)
    setup_logger(name="detco_d2", abbrev_name="detco")
    try:
        tasks = make_tasks(args)
        cells = plan(tasks, args.init, args.seeds, args.shard)
        failed = run_all(args, cells)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark: {error}")
    results = [read_result(cell, args.output) for cell in plan(tasks, args.init, args.seeds, "0/1")]
    text = write_report(args.output, results, command_line())
    logger.info("\n%s\nwritten to %s", text, args.output)
    if failed:
        sys.exit(f"benchmark: {failed} of {len(cells)} cells failed; call again to retry them")


if __name__ == "__main__":
    main()
