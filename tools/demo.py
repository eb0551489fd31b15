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
QUEUE_LENGTH = 256  # of the config; at most half of the images


def near(path: str | Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def plan(args: argparse.Namespace) -> dict[str, list[str]]:
    """Titles and command lines, without `python` and with the names of scripts."""
    output, gpus = args.output, ["--num-gpus", str(args.num_gpus)]
    run, names = f"{output}/pretrain", args.images or [f"scenes_unlabelled_600@{output}/scenes"]
    detector = ROOT / "configs/demo/faster_rcnn_R_18_FPN.yaml"
    pretrain = ["pretrain_net.py", "--config-file", near(ROOT / "configs/demo/detco_R_18.yaml")]
    listed = ", ".join(f'"{name}"' for name in names)
    pretrain += [*gpus, "--overwrite", "DATASETS.TRAIN", f"({listed},)", "OUTPUT_DIR", run]
    num_images = sum(len(list_images(folder)) for folder in args.images or [])
    if 0 < num_images < 2 * QUEUE_LENGTH:
        pretrain += ["MODEL.DETCO.QUEUE_LENGTH", str(num_images // 2)]
    if args.pretrain_iters:
        pretrain += ["SOLVER.MAX_ITER", str(args.pretrain_iters)]
    weights = f"DetCo={run}/model_final.pth"
    benchmark = ["tools/benchmark.py", "--suite", near(detector), *gpus, "--output", output]
    benchmark += ["--seeds", str(args.seeds), "--evaluations", "1"]
    benchmark += ["--init", "random", "--init", weights]
    if args.finetune_iters:
        steps = sorted({args.finetune_iters * 8 // 10, args.finetune_iters * 93 // 100})
        benchmark += ["--opts", "SOLVER.MAX_ITER", str(args.finetune_iters)]
        benchmark += ["SOLVER.STEPS", repr(tuple(steps))]
    features = ["tools/visualize.py", "all", "--weights", "random", "--weights", weights]
    features += ["--limit", "60", "--images", *(args.images or [f"{output}/scenes/unlabelled_600"])]
    detections = ["tools/visualize.py", "detections", "--output", output]
    for init in ("random", "DetCo"):
        cell = f"{output}/cells/scenes/{detector.stem}/{init}/seed0"
        detections += ["--weights", f"{init}={cell}/model_final.pth"]
    page = ["tools/report.py", run, "--transfer", output, "--output", f"{output}/report.html"]
    return {
        "Pretrain a ResNet-18 with DetCo": pretrain,
        "Fine-tune a detector from random and from DetCo": benchmark,
        "Draw what the detectors find": detections,
        "Draw what the features see": features,
        "Write the page": page,
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
    for i, (title, (script, *words)) in enumerate(steps.items(), start=1):
        command = [near(sys.executable), near(ROOT / script), *words]
        print(f"\n[{i}/{len(steps)}] {title}:\n{shlex.join(command)}\n", flush=True)
        if code := subprocess.run(command).returncode:
            sys.exit(f"demo: step {i}, {script}, ended with exit code {code}; its output is above.")
    print(Path(args.output, "results.md").read_text(), f"{args.output}/report.html", sep="\n")


if __name__ == "__main__":
    main()
