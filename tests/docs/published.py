"""The tables of the paper's figures in docs/MODEL_ZOO.md: `python -m tests.docs.published`."""

import csv
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")
KIND_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint", "sem_seg": "semantic"}
# (title, columns (heading, task), kinds)
LOW = ("1", "2", "5", "10")
LENGTHS = ("12k", "1x", "2x")
TABLES = [
    (
        "PASCAL VOC, Faster R-CNN C4, 24k iterations; AP / AP50 / AP75",
        [("", "voc/faster_rcnn_R_50_C4_24k")],
    ),
    (
        "COCO, Mask R-CNN C4; AP / AP50 / AP75",
        [(length, f"coco/mask_rcnn_R_50_C4_{length}") for length in LENGTHS],
    ),
    (
        "COCO, Mask R-CNN FPN; AP / AP50 / AP75",
        [(length, f"coco/mask_rcnn_R_50_FPN_{length}") for length in LENGTHS],
    ),
    (
        "COCO and Cityscapes; AP / AP50 / AP75, or AP / AP50, or mIoU",
        [
            *((f"RetinaNet {length}", f"coco/retinanet_R_50_FPN_{length}") for length in LENGTHS),
            ("Keypoint R-CNN 2x", "coco/keypoint_rcnn_R_50_FPN_2x"),
            ("Cityscapes, Mask R-CNN FPN", "cityscapes/mask_rcnn_R_50_FPN_24k"),
            ("Cityscapes, FCN-16s", "cityscapes/semantic_segmentation_R_50_FCN"),
        ],
    ),
    (
        "A share of COCO, 12k iterations; AP / AP50 / AP75, or AP alone",
        [
            *((f"Mask {n} %", f"coco_low_data/mask_rcnn_R_50_FPN_{n}percent_12k") for n in LOW),
            *(
                (f"RetinaNet {n} %", f"coco_low_data/retinanet_R_50_FPN_{n}percent_12k")
                for n in LOW
            ),
        ],
    ),
]


def read_published() -> dict:
    """The paper's figures: {task: {method: {kind: [percent for each metric known]}}}."""
    figures = {}
    with open(FILE, newline="") as file:
        for row in csv.DictReader(file):
            kinds = figures.setdefault(row["task"], {}).setdefault(row["method"], {})
            kinds[row["kind"]] = [float(value) for value in row["percent"].split("/")]
    return figures


def published_tables() -> str:
    """All figures of published.csv, as Markdown."""
    figures, parts = read_published(), []
    assert {task for _, columns in TABLES for _, task in columns} == figures.keys()
    for title, columns in TABLES:
        methods = dict.fromkeys(method for _, task in columns for method in figures[task])
        cells = [
            (f"{heading} {KIND_TITLES[kind]}".strip(), task, kind)
            for kind in KIND_TITLES
            for heading, task in columns
            if any(kind in kinds for kinds in figures[task].values())
        ]
        lines = [f"| {title} | " + " | ".join(heading for heading, *_ in cells) + " |"]
        lines.append("|---" * (len(cells) + 1) + "|")
        for method in methods:
            found = [figures[task].get(method, {}).get(kind, []) for _, task, kind in cells]
            shown = [" / ".join(f"{value:.1f}" for value in values) or "-" for values in found]
            lines.append(f"| {method} *(paper)* | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(published_tables())
