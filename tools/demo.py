#!/usr/bin/env python
"""The main job, small: pretrain with DetCo, fine-tune from random and from DetCo, and report.

python tools/demo.py                          # 600 rendered scenes
python tools/demo.py --images /my/photos      # one's own images; detectors learn rendered scenes

Says each command of the project before it runs it, and ends with a table and report.html.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from detco_d2.data.datasets import list_images

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs/demo"
QUEUE_LENGTH = 256  # of the config; at most half of the images


def near(path: str | Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def plan(args: argparse.Namespace) -> dict[str, str]:
    """Gives titles and command lines, which begin with the name of a script."""
    output, seeds, gpus = shlex.quote(args.output), args.seeds, args.num_gpus
    names = args.images or [f"scenes_unlabelled_600@{args.output}/scenes"]
    listed = shlex.quote("({},)".format(", ".join(f'"{name}"' for name in names)))
    images = shlex.join(args.images or [f"{args.output}/scenes/unlabelled_600"])
    num_images = sum(len(list_images(folder)) for folder in args.images or [])
    few = (
        f" MODEL.DETCO.QUEUE_LENGTH {num_images // 2}" if 0 < num_images < 2 * QUEUE_LENGTH else ""
    )
    iters, tuned = args.pretrain_iters, args.finetune_iters
    short = f" SOLVER.MAX_ITER {iters}" if iters else ""
    steps = f"({8 * tuned // 10}, {93 * tuned // 100})" if tuned else ""
    brief = f" --opts SOLVER.MAX_ITER {tuned} SOLVER.STEPS '{steps}'" if tuned else ""
    detco = f"DetCo={output}/pretrain/model_final.pth"
    cells = f"{output}/cells/scenes/faster_rcnn_R_18_FPN"
    return {
        "Pretrain a ResNet-18 with DetCo": "pretrain_net.py --overwrite "
        f"--config-file {near(CONFIGS / 'detco_R_18.yaml')} --num-gpus {gpus} "
        f"DATASETS.TRAIN {listed} OUTPUT_DIR {output}/pretrain{few}{short}",
        "Fine-tune a detector from random and from DetCo": "tools/benchmark.py "
        f"--suite {near(CONFIGS / 'faster_rcnn_R_18_FPN.yaml')} --num-gpus {gpus} --seeds {seeds} "
        f"--evaluations 1 --init random --init {detco} --output {output}{brief}",
        "Draw what the detectors find": "tools/visualize.py detections "
        f"--weights random={cells}/random/seed0/model_final.pth "
        f"--weights DetCo={cells}/DetCo/seed0/model_final.pth --output {output}",
        "Draw what the features see": "tools/visualize.py all --weights random "
        f"--weights {detco} --limit 60 --images {images}",
        "Write the page": f"tools/report.py {output}/pretrain --transfer {output} "
        f"--output {output}/report.html",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", default="output/demo", help="folder for everything written")
    add("--images", action="append", help="folder to pretrain on; repeatable")
    add("--seeds", type=int, default=1, help="fine-tuning runs of each kind")
    add("--pretrain-iters", type=int, help="default: as in the config")
    add("--finetune-iters", type=int, help="default: as in the config")
    add("--num-gpus", type=int, default=0, help="0: CPU; 1: one GPU")
    args = parser.parse_args()
    try:
        steps = plan(args)
    except OSError as error:
        sys.exit(f"demo: {error}")
    shutil.rmtree(f"{args.output}/cells", ignore_errors=True)  # the detectors of an earlier demo
    for i, (title, line) in enumerate(steps.items(), start=1):
        script, words = line.split(" ", 1)
        command = f"{near(sys.executable)} {near(ROOT / script)} {words}"
        print(f"\n[{i}/{len(steps)}] {title}:\n{command}\n", flush=True)
        if code := subprocess.run(shlex.split(command)).returncode:
            sys.exit(f"demo: step {i}, {script}, ended with exit code {code}; its output is above.")
    print(Path(args.output, "results.md").read_text(), f"{args.output}/report.html", sep="\n")


if __name__ == "__main__":
    main()
