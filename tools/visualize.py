#!/usr/bin/env python
"""Pictures of what a backbone sees, several weight files beside each other.

python tools/visualize.py all --weights random --weights detco=output/mine/model_final.pth \\
    --images /my/photos
python tools/visualize.py neighbours --weights output/mine/model_final.pth --images /my/photos \\
    --query /my/photos/cat.jpg --box 0.3,0.2,0.6,0.5 --stages res4
python tools/visualize.py match --weights output/mine/model_final.pth --pair left.jpg right.jpg

pca: principal components of the features, as colours. neighbours: the patches of other images that
are nearest to one. match: cells of two views that are each other's nearest, and how many of them
show the same place. A weight file may be of any format that the package reads; `random` is an
untrained ResNet of the same depth. The pictures go to pictures/ beside the first weight file.
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
from detco_d2.reports.feature_drawing import (
    Matches,
    Neighbours,
    draw_components,
    draw_matches,
    draw_neighbours,
)
from detco_d2.reports.features import (
    Box,
    best_patches,
    draw_views,
    embed,
    judge,
    match_cells,
    principal_colours,
    read_square,
    snap,
)
from detco_d2.weights.frozen import (
    STAGES,
    FrozenBackbone,
    frozen_backbone,
    random_backbone,
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


def build_backbones(args: argparse.Namespace) -> dict[str, FrozenBackbone]:
    """By name; `random` is as deep as the first weight file."""
    files = [path for _, path in args.weights if path]
    backbones = {}
    for name, path in args.weights:
        if name in backbones:
            raise ValueError(f"--weights names {name!r} twice; give each a NAME=FILE of its own.")
        if path:
            backbones[name] = frozen_backbone(path, args.stages)
        elif files:
            backbones[name] = random_backbone_like(files[0], 0, args.stages)
        else:
            backbones[name] = random_backbone(args.depth, 0, args.stages)
        logger.info("%s: %s", name, backbones[name].source)
    return backbones


def evenly(items: list, count: int) -> list:
    """At most `count` of the items, from all of the list."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def list_files(args: argparse.Namespace) -> list[str]:
    """The images of --images, each once, and of those of a long list an even choice."""
    files: list[str] = []
    for path in args.images:
        files += [path] if os.path.isfile(path) else [d["file_name"] for d in list_images(path)]
    files = list(dict.fromkeys(files))
    if len(files) > args.limit:
        logger.info("%d of %d images, evenly chosen; --limit sets it", args.limit, len(files))
    return evenly(files, args.limit)


def read_pictures(files: list[str], size: int) -> list[np.ndarray]:
    """Those that can be read.

    Raises:
        UnreadableImage: none can; says why for the last.
    """
    pictures = []
    for file in files:
        try:
            pictures.append(read_square(file, size))
        except UnreadableImage as error:
            logger.warning("Skipped: %s", error)
            if file == files[-1] and not pictures:
                raise
    return pictures


def pca(args: argparse.Namespace, backbones: dict[str, FrozenBackbone]) -> str:
    """Components over all images, of which the first --count are shown."""
    pictures = read_pictures(list_files(args), args.size)
    colours: dict[str, dict[str, np.ndarray]] = {}
    for name, backbone in backbones.items():
        maps = embed(backbone, pictures)
        colours[name] = {s: principal_colours(maps[s])[: args.count] for s in args.stages}
    draw_components(args.output / "pca.png", pictures[: args.count], colours)
    return f"components over {len(pictures)} images"


def neighbours(args: argparse.Namespace, backbones: dict[str, FrozenBackbone]) -> str:
    """The nearest patch of every image but the query's, of which the --count best are shown."""
    files = list_files(args)
    asked = args.query or files[0]
    query = read_square(asked, args.size)
    pictures = read_pictures([f for f in files if not os.path.samefile(f, asked)], args.size)
    if not pictures:
        raise ValueError("There is no image to search in; give more --images than the query.")
    rows = []
    for name, backbone in backbones.items():
        maps, features = embed(backbone, pictures), embed(backbone, [query])
        for s in args.stages:
            box = snap(args.box, *features[s].shape[-2:])
            found = zip(pictures, best_patches(features[s][0], box, maps[s]))
            best = sorted(found, key=lambda pair: -pair[1].similarity)[: args.count]
            rows.append(Neighbours(f"{name}, {s}", box, best))
    draw_neighbours(args.output / "neighbours.png", query, rows)
    return f"the nearest patches of {len(pictures)} images"


def match_pair(args: argparse.Namespace, backbones: dict[str, FrozenBackbone]) -> str:
    """Two given images: which cells are alike, of which nothing says whether they should be."""
    a, b = (read_square(path, args.size) for path in args.pair)
    panels = []
    for name, backbone in backbones.items():
        maps = embed(backbone, [a, b])[args.stages[-1]]
        left, right, _ = match_cells(maps[0], maps[1], mutual=True)
        best = (left[: args.lines], right[: args.lines])
        panels.append(Matches(name, (a, b), best, None))
    title = f"{args.stages[-1]}: the most similar mutual nearest cells"
    draw_matches(args.output / "match.png", title, [panels])
    return title


def match(args: argparse.Namespace, backbones: dict[str, FrozenBackbone]) -> str:
    """With --pair of two given images; else of two random views of every image."""
    if args.pair:
        return match_pair(args, backbones)
    pictures = read_pictures(list_files(args), args.size)
    rows: list[list[Matches]] = [[] for _ in range(min(args.count, len(pictures)))]
    said = []
    for name, backbone in backbones.items():
        counts = np.zeros(2, int)
        for i, picture in enumerate(pictures):
            views = draw_views(picture, seed=i)
            maps = embed(backbone, [view.picture for view in views])[args.stages[-1]]
            grid = (maps.shape[-2], maps.shape[-1])
            visible, right = judge(*match_cells(maps[0], maps[1], mutual=False)[:2], views, grid)
            counts += [right.sum(), visible.sum()]
            if i < len(rows):
                title = f"{name}: {right.sum()} of {visible.sum()} cells right"
                a, b, _ = match_cells(maps[0], maps[1], mutual=True)
                visible, right = judge(a, b, views, grid)
                drawn = evenly(np.flatnonzero(visible).tolist(), args.lines)
                both = (views[0].picture, views[1].picture)
                rows[i].append(Matches(title, both, (a[drawn], b[drawn]), right[drawn]))
        said.append(f"{name} {100 * counts[0] / max(counts[1], 1):.1f} %")
    title = f"{args.stages[-1]}: nearest cell within one cell of the truth: {', '.join(said)}"
    title += f", over {len(pictures)} images"
    draw_matches(args.output / "match.png", f"{title}\nlines: mutual ones, green right", rows)
    return title


# What each draws, of which stages and how many, where nothing else is asked for.
KINDS = {
    "pca": (pca, list(STAGES), 4),
    "neighbours": (neighbours, ["res4", "res5"], 6),
    "match": (match, ["res4"], 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("kind", choices=[*KINDS, "all"])
    add("--weights", action="append", type=parse_weights, required=True, help="NAME=FILE or random")
    add("--images", nargs="+", help="files or folders")
    add("--stages", nargs="+", choices=STAGES, help="pca: all; neighbours: res4, res5; match: res4")
    add("--size", type=int, default=224, help="side of the pictures, in pixels; a multiple of 32")
    add("--limit", type=int, default=100, help="images that are read at most")
    add("--count", type=int, help="of images shown, the first ones: pca 4, match 3; of patches: 6")
    add("--depth", type=int, default=50, help="of `random`, where no weight file says it")
    add("--query", help="neighbours: the image of the query patch; default: the first")
    add("--box", type=parse_box, default=(0.4, 0.4, 0.6, 0.6), help="left,top,right,bottom, 0..1")
    add("--pair", nargs=2, metavar="FILE", help="match: two images instead of views of one")
    add("--lines", type=int, default=25, help="match: lines drawn in each pair")
    add("--output", type=Path, help="folder; default: pictures/ beside the first weight file")
    args = parser.parse_args()
    kinds = list(KINDS) if args.kind == "all" else [args.kind]
    if not args.images and not (args.pair and kinds == ["match"]):
        parser.error("--images names no file or folder")
    if args.size % 32 or args.size < 32:
        parser.error(f"--size is {args.size}; it must be a multiple of 32")
    if min(args.limit, args.lines, 1 if args.count is None else args.count) < 1:
        parser.error("--limit, --count and --lines must be at least 1")
    if not args.output:
        files = [path for _, path in args.weights if path]
        args.output = Path(files[0]).parent / "pictures" if files else None
    if not args.output:
        parser.error("with --weights random alone, --output must name a folder")
    setup_logger(name="detco_d2", abbrev_name="detco")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            run, stages, count = KINDS[kind]
            own = argparse.Namespace(**vars(args))
            own.stages, own.count = args.stages or stages, args.count or count
            said = run(own, build_backbones(own))
            logger.info("%s: %s", args.output / f"{kind}.png", said)
    except (ValueError, OSError, UnreadableImage) as error:
        sys.exit(f"visualize: {error}")


if __name__ == "__main__":
    main()
