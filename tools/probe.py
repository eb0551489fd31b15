#!/usr/bin/env python
"""What frozen features know of the classes, stage by stage: k-NN, a linear classifier, SVMs.

python tools/probe.py --weights output/mine/model_final.pth --random --data /labelled/folder
python tools/probe.py --weights mine.pth --data voc_2007_trainval --test voc_2007_test \\
    --labels images                                              # the VOC07 SVM task

--data is a folder of class folders (or of such folders in train/ and val/), a folder in VOC's
layout, or a registered detection data set, whose boxes are cut out (--labels crops) or whose images
are labelled with the classes in them (--labels images, SVMs only). Without a test half a quarter of
the images is held out. Prints a table and writes probes/NAME.json beside each weight file.
"""

import argparse
import itertools
import json
import logging
import os
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

import detco_d2  # noqa: F401  registers data sets
from detco_d2.engine.launch import ends_with_one_line, tool_parser
from detco_d2.engine.record import command_line, versions
from detco_d2.files import at_home, replacing
from detco_d2.probes.features import POOLS, Features, extract
from detco_d2.probes.labelled import KINDS, Labelled, LabelledImages, load_halves
from detco_d2.probes.probes import chance, knn, linear, svm
from detco_d2.weights.frozen import (
    STAGES,
    FrozenBackbone,
    frozen_backbone,
    random_backbone,
    random_backbone_like,
)

PROBES = ("knn", "linear", "svm")
Result = dict[str, Any]
logger = logging.getLogger("detco_d2.probe")


def parse() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], metavar="FILE", help="of any format, side by side")
    add("--random", action="store_true", help="and a random initialisation of the same depth")
    add("--depth", type=int, default=50, help="of --random, where there are no --weights")
    add("--data", required=True, help="labelled images, see above")
    add("--test", default="", help="the test half, where --data does not bring it")
    add("--labels", choices=KINDS, default="crops", help="of a detection data set")
    add("--probes", nargs="+", choices=PROBES, help="default: all that the labels allow")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    add("--size", type=int, default=224, help="side of the images in pixels")
    add("--max-images", type=int, default=0, help="at most so many in each half; 0: all")
    add("--neighbours", type=int, default=20, help="k of k-NN")
    add("--svm-pool", choices=POOLS, default="grid", help="how the SVMs' features are pooled")
    add("--seed", type=int, default=0, help="of --random, of the split, and of the linear probe")
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, default=2, help="loader processes")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output-dir", type=Path, help="writes probes/ there (default: beside the weights)")
    args = parser.parse_args(at_home(sys.argv[1:]))
    if not args.weights and not args.random:
        parser.error("nothing to probe: give --weights FILE, or --random")
    if args.labels == "images" and {"knn", "linear"} & set(args.probes or ()):
        parser.error("--labels images has several classes an image: --probes svm is all it allows")
    args.probes = args.probes or (["svm"] if args.labels == "images" else list(PROBES))
    args.pools = {"knn": "average", "linear": "average", "svm": args.svm_pool}
    return args


def run_probes(
    args: argparse.Namespace, backbone: FrozenBackbone, train: Labelled, test: Labelled
) -> tuple[list[Result], torch.Tensor, torch.Tensor]:
    """The results of all probes at all stages, and the labels of both halves."""

    def features_of(half: Labelled) -> tuple[Features, torch.Tensor]:
        features, numbers = extract(
            backbone,
            LabelledImages(half, args.size),
            pools=sorted({args.pools[probe] for probe in args.probes}),
            batch_size=args.batch_size,
            num_workers=args.workers,
            device=args.device,
        )
        return features, torch.from_numpy(half.labels)[numbers]

    backbone.to(args.device)
    (train_x, y), (test_x, test_y) = features_of(train), features_of(test)
    results = []
    for probe, stage in itertools.product(args.probes, args.stages):
        name = (args.pools[probe], stage)
        halves = train_x[name], y, test_x[name], test_y
        if probe == "knn":
            found: Result = {"top-1": knn(*halves, k=args.neighbours)}
        elif probe == "linear":
            found = linear(*halves, seed=args.seed)
        else:
            found = svm(*halves)
        interval = found.pop("interval", None)
        for metric, value in found.items():
            result = {"probe": probe, "stage": stage, "metric": metric, "value": value}
            results.append({**result, "interval": interval if metric == "mAP" else None})
            logger.info("%s %s: %s %s", probe, stage, metric, text_of(results[-1]))
    return results, y, test_y


def text_of(result: Result) -> str:
    text = f"{result['value']:.1f}"
    return "{} ({:.1f} to {:.1f})".format(text, *result["interval"]) if result["interval"] else text


def write(args: argparse.Namespace, path: str, record: Result) -> None:
    beside = path or next(iter(args.weights), "")
    folder = (args.output_dir or Path(beside).parent) / "probes"
    folder.mkdir(parents=True, exist_ok=True)
    weights = "_".join([Path(path).absolute().parent.name, Path(path).stem]) if path else "random"
    words = ["_".join(Path(place).parts[-2:]) for place in (args.data, args.test) if place]
    if args.output_dir and path:  # where those of other folders go, too
        weights = f"{zlib.crc32(os.path.abspath(path).encode()):08x}_{weights}"
    words += [args.labels, *args.probes, weights]
    name = re.sub(r"\W+", "_", "_".join(words)).strip("_")
    file = folder / f"{name}.json"
    with replacing(file) as part:
        part.write_text(json.dumps(record, indent=1))
    logger.info("written: %s", file)


def table(args: argparse.Namespace, records: list[Result]) -> str:
    """Markdown: a row for each probe, metric and backbone, a column for each stage.

    In brackets the 95 % interval by bootstrap over the test items.
    """
    rows: list[list[Any]] = []
    found = [
        {(r["probe"], r["metric"], r["stage"]): text_of(r) for r in record["results"]}
        for record in records
    ]
    for probe, metric in dict.fromkeys(key[:2] for key in found[0]):
        for record, values in zip(records, found):
            row = [values[probe, metric, stage] for stage in args.stages]
            rows.append([probe, metric, record["weights"], *row])
        chances = [f"{records[0]['chance'][metric]:.1f}"] * len(args.stages)
        rows.append([probe, metric, "chance", *chances])
    headers = ["probe", "metric", "backbone", *args.stages]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def probe(args: argparse.Namespace, path: str, train: Labelled, test: Labelled) -> Result:
    """All that is written of one weight file, or of "", the random backbone."""
    started = time.perf_counter()
    if path:
        backbone = frozen_backbone(path, args.stages)
    elif args.weights:
        backbone = random_backbone_like(args.weights[0], args.seed, args.stages)
    else:
        backbone = random_backbone(args.depth, args.seed, args.stages)
    name = path or backbone.source
    counts = len(train.items), len(test.items)
    logger.info("%s: %d training, %d test items, on %s", name, *counts, args.device)
    results, y, test_y = run_probes(args, backbone, train, test)
    return {
        "command": command_line(),
        "weights": name,
        "data": args.data,
        "labels": args.labels,
        "num_train": len(y),
        "num_test": len(test_y),
        "results": results,
        "chance": chance(y, test_y),
        "classes": train.classes,
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }


@ends_with_one_line("probe")
def main() -> None:
    args = parse()
    setup_logger(name="detco_d2", abbrev_name="detco")
    records: list[Result] = []
    train, test = load_halves(
        args.data, args.test, kind=args.labels, max_images=args.max_images, seed=args.seed
    )
    for path in [*args.weights, *([""] if args.random else [])]:
        records.append(probe(args, path, train, test))
        write(args, path, records[-1])
    print(
        f"\n{args.data}, {args.labels}: {records[0]['num_train']} training and "
        f"{records[0]['num_test']} test items, percent\n\n{table(args, records)}"
    )


if __name__ == "__main__":
    main()
