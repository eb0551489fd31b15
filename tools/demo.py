#!/usr/bin/env python
"""The main job, small: pretrain with DetCo, fine-tune from random and from DetCo, and report.

python tools/demo.py                          # 600 rendered scenes
python tools/demo.py --images /my/photos      # one's own images; detectors learn rendered scenes
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from detco_d2.data.datasets import list_images
from detco_d2.engine.launch import tool_parser
from detco_d2.files import at_home

ROOT = Path(__file__).resolve().parent.parent


def near(name: str) -> str:
    """The path of a file of this repository, or an absolute one, as one would type it here."""
    relative = os.path.relpath(ROOT / name)
    return shlex.quote(str(ROOT / name) if relative.startswith("..") else relative)


def plan(args: argparse.Namespace) -> dict[str, str]:
    """Gives titles and command lines, which begin with the name of a script."""
    output, gpus = shlex.quote(args.output), args.num_gpus
    names = args.images or [f"scenes_unlabelled_600@{args.output}/scenes"]
    listed = shlex.quote("({})".format("".join(f'"{name}",' for name in names)))
    pretrain = (
        f"pretrain_net.py --config-file {near('configs/demo/detco_R_18.yaml')} --num-gpus {gpus} "
        f"--overwrite DATASETS.TRAIN {listed} OUTPUT_DIR {output}/pretrain"
    )
    if args.images:  # a longer queue would hold keys of the same images
        num_images = sum(len(list_images(folder)) for folder in args.images)
        pretrain += f" MODEL.DETCO.QUEUE_LENGTH {min(256, num_images // 2)}"
    if args.pretrain_iters:
        pretrain += f" SOLVER.MAX_ITER {args.pretrain_iters}"
    detco = f"DetCo={output}/pretrain/model_final.pth"
    benchmark = (
        f"tools/benchmark.py --suite {near('configs/demo/faster_rcnn_R_18_FPN.yaml')} "
        f"--num-gpus {gpus} --seeds {args.seeds} --evaluations 1 --output {output} "
        f"--init random --init {detco}"
    )
    if total := args.finetune_iters:
        benchmark += f" --opts SOLVER.MAX_ITER {total} SOLVER.STEPS '({8 * total // 10},)'"
    cells = f"{output}/cells/scenes/faster_rcnn_R_18_FPN"
    images = shlex.join(args.images or [f"{args.output}/scenes/unlabelled_600"])
    return {
        "Pretrain a ResNet-18 with DetCo": pretrain,
        "Fine-tune a detector from random and from DetCo": benchmark,
        "Draw what the detectors find": "tools/visualize.py detections "
        f"--weights random={cells}/random/seed0/model_final.pth "
        f"--weights DetCo={cells}/DetCo/seed0/model_final.pth --output {output}",
        "Draw what the features see": "tools/visualize.py all --weights random "
        f"--weights {detco} --images {images}",
        "Use a detector": f"tools/predict.py {cells}/DetCo/seed0 {output}/scenes/test_100 "
        "--pictures 8",
        "Write the page": f"tools/report.py {output}/pretrain --output {output}/report.html",
    }


def verdict(output: Path) -> str:
    """What the seeds tell; where that is nothing, also what a longer pretraining gave."""
    (pairs,) = json.loads((output / "results.json").read_text())["differences"].values()
    found = pairs["DetCo - random"]["bbox/AP"]
    if found["interval"] and found["interval"][0] > 0:
        return f"From DetCo's weights the detector is better, by {found['mean']:.1f} AP."
    zoo = (ROOT / "docs/MODEL_ZOO.md").read_text()
    section = zoo[zoo.index("## PASCAL VOC 2007") : zoo.index("## Microscope")]
    return f"So short a demo does not show DetCo to be better. On photographs it is:\n\n{section}"


def main() -> None:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--output", default="output/demo", help="folder for everything written")
    add("--images", action="append", help="folder to pretrain on; repeatable")
    add("--pretrain-iters", type=int, help="default: as in the config")
    add("--finetune-iters", type=int, help="default: as in the config")
    add("--seeds", type=int, default=3, help="detectors of each start")
    gpus = min(1, torch.cuda.device_count())
    add("--num-gpus", type=int, default=gpus, help="0: CPU; 1: one GPU, if there is one")
    args = parser.parse_args(at_home(sys.argv[1:]))
    try:
        steps = plan(args)
    except OSError as error:
        parser.error(str(error))
    print("The demo runs on", "a GPU" if args.num_gpus else "the CPU")
    shutil.rmtree(f"{args.output}/cells", ignore_errors=True)  # the detectors of an earlier demo
    for i, (title, line) in enumerate(steps.items(), start=1):
        script, words = line.split(" ", 1)
        command = f"{near(sys.executable)} {near(script)} {words}"
        print(f"\n[{i}/{len(steps)}] {title}:\n{command}\n", flush=True)
        if code := subprocess.run(shlex.split(command)).returncode:
            sys.exit(f"demo: step {i}, {script}, ended with exit code {code}; its output is above.")
    output = Path(args.output)
    print((output / "results.md").read_text(), verdict(output), output / "report.html", sep="\n")


if __name__ == "__main__":
    main()
