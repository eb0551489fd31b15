#!/usr/bin/env python
"""Pictures of what a backbone sees and a detector finds, several weight files beside each other.

python tools/visualize.py all --weights random --weights detco=output/mine/model_final.pth \\
    --images /my/photos
python tools/visualize.py neighbours --weights output/mine/model_final.pth \\
    --images /my/photos/cat.jpg /my/photos --box 0.3,0.2,0.6,0.5
python tools/visualize.py detections --weights output/finetune/model_final.pth

pca: principal components of the features, as colours. neighbours: the patches of other images that
are nearest to one of the first image. all: both. `random` is an untrained ResNet of the same
depth. detections: the best boxes of what train_net.py trained, under the labels of its test set.
The pictures go to pictures/ beside the first weight file.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.logger import setup_logger

from detco_d2.data.datasets import load_images
from detco_d2.data.decode import UnreadableImage
from detco_d2.engine.launch import ends_with_one_line, tool_parser
from detco_d2.files import at_home
from detco_d2.reports.detections import plot_detections
from detco_d2.reports.features import (
    best_patches,
    embed,
    plot_components,
    plot_neighbours,
    principal_colours,
    read_square,
)
from detco_d2.weights.frozen import STAGES, FrozenBackbone, frozen_backbone, random_backbone_like

MAX_IMAGES = 100  # that are read
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 224  # side of the pictures, in pixels; a multiple of 32
logger = logging.getLogger("detco_d2.visualize")


def parse_weights(text: str) -> tuple[str, str]:
    """NAME=FILE, FILE (named by its folder), or `random`."""
    name, equals, path = text.partition("=")
    if text == "random":
        return "random", ""
    return (name, path) if equals else (Path(text).absolute().parent.name, text)


def parse_box(text: str) -> tuple[float, ...]:
    """Left, top, right and bottom as shares of a picture."""
    left, top, right, bottom = numbers = tuple(map(float, text.split(",")))
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError
    return numbers


def build_backbone(args: argparse.Namespace, path: str, stages: Iterable[str]) -> FrozenBackbone:
    """Of a weight file; for "" a random one as deep as the first weight file."""
    made = frozen_backbone(path, stages) if path else random_backbone_like(args.first, 0, stages)
    return made.to(DEVICE)


def read_pictures(args: argparse.Namespace) -> list[np.ndarray]:
    """The images of --images that can be read, each once, and of a long list an even choice."""
    files: list[str] = []
    for path in args.images:
        is_image = os.path.isfile(path) and not path.endswith(".json")
        files += [path] if is_image else [d["file_name"] for d in load_images([path], "--images")]
    files = list(dict.fromkeys(map(os.path.realpath, files)))
    count = min(len(files), MAX_IMAGES)
    pictures = []
    for file in [files[i * len(files) // count] for i in range(count)]:
        try:
            pictures.append(read_square(file, SIZE))
        except UnreadableImage as error:
            logger.warning("Skipped: %s", error)
    logger.info("%d of %d images", len(pictures), len(files))
    if not pictures:
        raise ValueError(
            f"None of {len(files)} images can be read, such as {files[0]!r}; give other --images."
        )
    return pictures


def pca(args: argparse.Namespace, file: Path) -> None:
    """Components over all images, of which the first --count are shown."""
    pictures = read_pictures(args)
    colours: dict[str, dict[str, np.ndarray]] = {}
    for name, path in args.weights.items():
        maps = embed(build_backbone(args, path, args.stages), pictures)
        colours[name] = {s: principal_colours(maps[s])[: args.count] for s in args.stages}
    plot_components(file, pictures[: args.count], colours)


def neighbours(args: argparse.Namespace, file: Path) -> None:
    """The patches of other images that are nearest to --box of the first."""
    pictures = read_pictures(args)
    if len(pictures) == 1:
        raise ValueError("There is no image to search in; give more --images than the first.")
    patches = {}
    for name, path in args.weights.items():
        for stage, maps in embed(build_backbone(args, path, args.stages), pictures).items():
            patches[f"{name}, {stage}"] = best_patches(maps, args.box)
    plot_neighbours(file, pictures, patches, args.count)


def detections(args: argparse.Namespace, file: Path) -> None:
    """What each detector finds on the first images of its test set."""
    if "" in args.weights.values():
        raise ValueError("--weights random has learnt no boxes; give a file of train_net.py.")
    plot_detections(file, args.weights)


KINDS = {"pca": pca, "neighbours": neighbours, "detections": detections}


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("kind", choices=[*KINDS, "all"])
    add("--weights", action="append", type=parse_weights, required=True, help="NAME=FILE or random")
    add("--images", nargs="+", help="files, folders or data sets")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    add("--count", type=int, default=4, help="images or patches that are shown")
    box = "of the query patch: left,top,right,bottom as shares of the first picture"
    add("--box", type=parse_box, default=(0.3, 0.3, 0.7, 0.7), help=box)
    add("--output", type=Path, help="folder; default: pictures/ beside the first weight file")
    args = parser.parse_args(at_home(sys.argv[1:]))
    names = [name for name, _ in args.weights]
    args.weights = dict(args.weights)
    if len(names) > len(args.weights):
        parser.error(f"--weights has one name twice, of {names}; give each a NAME=FILE of its own")
    if args.count < 1:
        parser.error("--count must be at least 1")
    if not args.images and args.kind != "detections":
        parser.error("--images names no file or folder")
    args.first = next(filter(None, args.weights.values()), None)
    if args.first is None:
        parser.error("--weights names no file, which `random` takes its depth from")
    args.output = args.output or Path(args.first).parent / "pictures"
    return args


@ends_with_one_line("visualize")
def main() -> None:
    args = parse_arguments()
    setup_logger(name="detco_d2", abbrev_name="detco")
    logger.info("Networks run on %s", DEVICE)
    args.output.mkdir(parents=True, exist_ok=True)
    for kind in ["pca", "neighbours"] if args.kind == "all" else [args.kind]:
        file = args.output / f"{kind}.png"
        KINDS[kind](args, file)
        logger.info("%s", file)


if __name__ == "__main__":
    main()
