#!/usr/bin/env python
"""Pictures of what a backbone sees and a detector finds, several weight files beside each other.

python tools/visualize.py all --weights random --weights detco=output/mine/model_final.pth \\
    --images /my/photos
python tools/visualize.py neighbours --weights output/mine/model_final.pth --images /my/photos \\
    --query /my/photos/cat.jpg --box 0.3,0.2,0.6,0.5 --stages res4
python tools/visualize.py detections --weights output/finetune/model_final.pth

pca: principal components of the features, as colours. neighbours: the patches of other images that
are nearest to one. all: both. A weight file may be of any format that the package reads; `random`
is an untrained ResNet of the same depth. detections: the best boxes of what train_net.py trained,
on --images, or beside the labels of the first images of its test set. The pictures go to pictures/
beside the first weight file.
"""

import argparse
import logging
import os
import re
import sys
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger

from detco_d2.data.datasets import list_images
from detco_d2.data.decode import UnreadableImage
from detco_d2.reports.detections import plot_detections
from detco_d2.reports.features import (
    Box,
    Neighbours,
    best_patches,
    embed,
    plot_components,
    plot_neighbours,
    principal_colours,
    read_square,
    snap,
)
from detco_d2.weights.frozen import (
    STAGES,
    FrozenBackbone,
    frozen_backbone,
    random_backbone_like,
)

logger = logging.getLogger("detco_d2.visualize")


def parse_weights(text: str) -> tuple[str, str]:
    """NAME=FILE, FILE (named by its folder), or `random`."""
    name, equals, path = text.partition("=")
    if text == "random":
        return "random", ""
    return (name, path) if equals else (Path(text).absolute().parent.name, text)


def parse_box(text: str) -> Box:
    numbers = [float(part) for part in text.split(",")] if re.fullmatch(r"[\d.,]+", text) else []
    if len(numbers) != 4 or not (
        0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not left,top,right,bottom as shares of the picture, such as "
            "0.4,0.4,0.6,0.6"
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]


def build_backbone(args: argparse.Namespace, path: str, stages: list[str]) -> FrozenBackbone:
    """Of a weight file; for "" a random one as deep as the first weight file."""
    if path:
        return frozen_backbone(path, stages)
    return random_backbone_like(next(filter(None, args.weights.values())), 0, stages)


def list_files(args: argparse.Namespace) -> list[str]:
    """The images of --images, each once, and of those of a long list an even choice."""
    files: list[str] = []
    for path in args.images or []:
        files += [path] if os.path.isfile(path) else [d["file_name"] for d in list_images(path)]
    files = list(dict.fromkeys(files))
    if len(files) <= args.limit:
        return files
    logger.info("%d of %d images, evenly chosen; --limit sets it", args.limit, len(files))
    return [files[i * len(files) // args.limit] for i in range(args.limit)]


def read_pictures(files: list[str], size: int) -> list[np.ndarray]:
    """Those that can be read."""
    pictures = []
    for file in files:
        try:
            pictures.append(read_square(file, size))
        except UnreadableImage as error:
            logger.warning("Skipped: %s", error)
    if not pictures:
        raise ValueError(
            f"None of {len(files)} images can be read, such as {files[0]!r}; give other --images."
        )
    return pictures


def pca(args: argparse.Namespace, file: Path) -> None:
    """Components over all images, of which the first --count are shown."""
    stages, count = args.stages or list(STAGES), args.count or 4
    pictures = read_pictures(list_files(args), args.size)
    colours: dict[str, dict[str, np.ndarray]] = {}
    for name, path in args.weights.items():
        maps = embed(build_backbone(args, path, stages), pictures)
        colours[name] = {stage: principal_colours(maps[stage])[:count] for stage in stages}
    plot_components(file, pictures[:count], colours)


def neighbours(args: argparse.Namespace, file: Path) -> None:
    """The nearest patch of every image but the query's, of which the --count best are shown."""
    files = list_files(args)
    asked = args.query or files[0]
    query = read_square(asked, args.size)
    others = [other for other in files if not os.path.samefile(other, asked)]
    if not others:
        raise ValueError("There is no image to search in; give more --images than the query.")
    pictures = read_pictures(others, args.size)
    stages = args.stages or ["res4", "res5"]
    rows = []
    for name, path in args.weights.items():
        backbone = build_backbone(args, path, stages)
        maps, features = embed(backbone, pictures), embed(backbone, [query])
        for stage in stages:
            box = snap(args.box, *features[stage].shape[-2:])
            found = zip(pictures, best_patches(features[stage][0], box, maps[stage]))
            best = sorted(found, key=lambda pair: -pair[1].similarity)[: args.count or 6]
            rows.append(Neighbours(f"{name}, {stage}", box, best))
    plot_neighbours(file, query, rows)


def detections(args: argparse.Namespace, file: Path) -> None:
    """What each detector finds on --images, or on the first --count images of its test set."""
    if "" in args.weights.values():
        raise ValueError("--weights random has learnt no boxes; give a file of train_net.py.")
    plot_detections(file, args.weights, list_files(args), args.count or 4)


KINDS = {"pca": pca, "neighbours": neighbours, "detections": detections}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=[*KINDS, "all"])
    add("--weights", action="append", type=parse_weights, required=True, help="NAME=FILE or random")
    add("--images", nargs="+", help="files or folders")
    add("--stages", nargs="+", choices=STAGES, help="default: pca: all; neighbours: res4, res5")
    add("--size", type=int, default=224, help="side of the pictures, in pixels; a multiple of 32")
    add("--limit", type=int, default=100, help="images that are read at most")
    add("--count", type=int, help="default: pca and detections: 4 images; neighbours: 6 patches")
    add("--query", help="neighbours: the image of the query patch; default: the first")
    add("--box", type=parse_box, default=(0.4, 0.4, 0.6, 0.6), help="left,top,right,bottom, 0..1")
    add("--output", type=Path, help="folder; default: pictures/ beside the first weight file")
    args = parser.parse_args()
    names = [name for name, _ in args.weights]
    files = [path for _, path in args.weights if path]
    args.weights = dict(args.weights)
    if len(names) > len(args.weights):
        parser.error(f"--weights has one name twice, of {names}; give each a NAME=FILE of its own")
    if not args.images and args.kind != "detections":
        parser.error("--images names no file or folder")
    if args.size % 32 or args.size < 32:
        parser.error(f"--size is {args.size}; it must be a multiple of 32")
    if min(args.limit, 1 if args.count is None else args.count) < 1:
        parser.error("--limit and --count must be at least 1")
    if not files:
        parser.error("--weights names no file, which `random` takes its depth from")
    args.output = args.output or Path(files[0]).parent / "pictures"
    return args


def main() -> None:
    args = parse_arguments()
    setup_logger(name="detco_d2", abbrev_name="detco")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for kind in ["pca", "neighbours"] if args.kind == "all" else [args.kind]:
            file = args.output / f"{kind}.png"
            KINDS[kind](args, file)
            logger.info("%s", file)
    except (ValueError, OSError, UnreadableImage) as error:
        sys.exit(f"visualize: {error}")


if __name__ == "__main__":
    main()
