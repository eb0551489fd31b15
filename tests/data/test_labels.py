"""Labels of all formats become the same boxes; what is missing follows, or is refused."""

import json
import shutil
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from detco_d2.data.coco import read_coco
from detco_d2.data.datasets import register_by_name
from detco_d2.data.labels import to_xywh
from detco_d2.data.voc import read_voc
from detco_d2.data.yolo import read_yolo
from detco_d2.engine.transfer import build_evaluator

from .. import exports
from ..conftest import load_config
from ..exports import CLASSES, draw_boxes, score, write_coco, write_image, write_text

WRITERS = {"coco": write_coco, "voc": exports.write_voc, "yolo": exports.write_yolo}
BOXES = [[[c, x0, y0, x1 - x0, y1 - y0] for c, x0, y0, x1, y1 in boxes] for boxes in draw_boxes()]


def boxes_of(images):
    return [[[a["category_id"], *to_xywh(a)] for a in image["annotations"]] for image in images]


def read(name):
    register_by_name([name])
    return DatasetCatalog.get(name)


def test_the_same_images_in_three_formats_are_the_same_boxes_and_the_same_ap(tmp_path):
    truth, found = [], []
    for kind, write in WRITERS.items():
        name = write(tmp_path / kind)
        images = read(name)
        assert boxes_of(images) == BOXES
        boxes = [box for image in images for label in image["annotations"] for box in label["bbox"]]
        assert all(isinstance(value, float) for value in boxes)  # others lose their decimals
        assert [image["image_id"] for image in images] == [1, 2, 3, 4, 5, 6]
        assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
        truth.append(score(name, tmp_path)["bbox"])
        found.append(score(name, tmp_path, shift=4)["bbox"])
    assert all(scores["AP"] == scores["AP-emu"] == 100 for scores in truth)
    assert repr(found[0]) == repr(found[1]) == repr(found[2]) and 20 < found[0]["AP"] < 95


def test_the_truth_as_prediction_has_all_masks_right(scenes, tmp_path):
    name = f"{scenes}/annotations/instances_test.json@{scenes}/test"
    read(name)
    scores = score(name, tmp_path, masks=True)
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == 100


@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
def test_a_complete_file_of_coco_is_read_as_detectron2_reads_it(layouts, kind):
    file, root = (f"{layouts}/coco/{x}" for x in (f"annotations/{kind}_val2017.json", "val2017"))
    images, metadata = read_coco(file, root)
    for image in images:
        for label in image["annotations"]:
            assert label.pop("area") > 0
    assert images == load_coco_json(file, root, f"{kind} of {root}")
    assert len(metadata.get("keypoint_names", [])) == 17 * (kind == "person_keypoints")
    assert metadata["thing_classes"] == MetadataCatalog.get(f"{kind} of {root}").thing_classes


def of_labels(change):
    return lambda content: [change(i, x) for i, x in enumerate(content["annotations"])]


def of_images(change):
    return lambda content: [change(x) for x in content["images"]]


def as_rle(i, label):
    x, y, w, h = label["bbox"]
    column = [exports.HEIGHT - h, h] * (w - 1)
    start = x * exports.HEIGHT + y
    rest = exports.WIDTH * exports.HEIGHT - start - (w - 1) * exports.HEIGHT - h
    counts = [start, h, *column, rest]
    label.update(segmentation={"counts": counts, "size": [exports.HEIGHT, exports.WIDTH]})
    label.pop("bbox")


RLE = {"counts": [9, 1, 71], "size": [9, 9]}
COMPLETED = {
    "nothing but boxes": of_labels(
        lambda i, x: [x.pop(key) for key in ("id", "area", "iscrowd", "segmentation")]
    ),
    "nothing but polygons": of_labels(lambda i, x: [x.pop(key) for key in ("bbox", "area")]),
    "nothing but rle": of_labels(as_rle),
    "ids from 0": of_labels(lambda i, x: x.update(id=i)),
    "one id": of_labels(lambda i, x: x.update(id=7)),
    "null": of_labels(lambda i, x: x.update(id=None, area=None, iscrowd=None, segmentation=None)),
    "flat polygons": of_labels(lambda i, x: x.update(segmentation=x["segmentation"][0])),
    "short polygons": of_labels(lambda i, x: x.update(segmentation=[x["bbox"]])),
    "strings": of_labels(lambda i, x: x.update(bbox=list(map(str, x["bbox"])))),
    "no sizes": of_images(lambda x: [x.pop("width"), x.pop("height")]),
    "backslashes": of_images(lambda x: x.update(file_name="..\\train\\" + x["file_name"])),
    "paths of another machine": of_images(
        lambda x: x.update(file_name="C:\\photos\\" + x["file_name"])
    ),
    "boxes of no image": lambda content: content["annotations"].append(
        {**content["annotations"][0], "image_id": 99}
    ),
    "an empty box": lambda content: content["annotations"].append(
        {**content["annotations"][0], "bbox": [5, 5, 0, 9]}
    ),
    "a class without boxes": lambda content: content["categories"].append({"id": 0, "name": "x"}),
}


@pytest.mark.parametrize("kind", COMPLETED)
def test_what_a_coco_file_lacks_is_completed(tmp_path, kind):
    name = write_coco(tmp_path, COMPLETED[kind])
    first = kind == "a class without boxes"
    assert boxes_of(read(name)) == [[[c + first, *box] for c, *box in x] for x in BOXES]
    assert score(name, tmp_path)["bbox"]["AP"] == 100


def test_what_was_changed_is_said_in_one_line(tmp_path):
    change = of_labels(lambda i, x: x["bbox"].__setitem__(2, 70 if i == 0 else 0 if i == 1 else 9))
    name = write_coco(tmp_path, change)
    labels = read(name)[0]["annotations"]
    assert len(labels) == 2 and sum(to_xywh(labels[0])[::2]) == exports.WIDTH
    line = MetadataCatalog.get(name).changes
    assert line.startswith("1 boxes cut at the edge of their image, 1 boxes without width")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content["images"][1].update(id=1), "'0.png' has the same id"),
        (of_labels(lambda i, x: x.update(category_id=2)), "'category_id': 2.*there is no 2"),
        (of_labels(lambda i, x: x.update(bbox=[1, 2, 3])), "expected 4 numbers"),
        (of_labels(lambda i, x: x.update(bbox=[1, 2, 3, float("nan")])), "expected 4 numbers"),
        (of_labels(lambda i, x: x.update(bbox=[0.1, 0.2, 0.3, 0.4])), "these are shares"),
        (of_labels(lambda i, x: x.update(bbox=[60, 40, 90, 70])), "less than half of the box"),
        (of_labels(lambda i, x: x.update(bbox=[], segmentation=[])), "neither a bbox nor"),
        (of_images(lambda x: x.pop("file_name")), "there is no 'file_name'"),
        (of_labels(lambda i, x: x.update(segmentation=RLE)), "is 80 high and 96 wide, and a mask"),
        (lambda content: content["images"][1].update(id="1"), "'ids of images'.*not supported"),
        (lambda content: content.pop("categories"), "is no COCO file: .*'annotations'"),
    ],
)
def test_what_a_coco_file_must_have_is_named_with_its_entry(tmp_path, change, message):
    file = write_coco(tmp_path, change)
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        read_coco(file)


def test_a_file_that_is_not_of_its_format_is_named(tmp_path):
    for name, reader in (("a.json", read_coco), ("a.yaml", partial(read_yolo, split="train"))):
        for text in ("{", "[1]"):
            with pytest.raises(ValueError, match=f"{name}' (is|has) no"):
                reader(write_text(tmp_path / name, text))


@pytest.mark.parametrize("folder", ["images", "train", "", "@elsewhere"])
def test_the_images_of_a_coco_file_are_found_or_named(tmp_path, folder):
    file = write_coco(tmp_path)
    if place := folder.removeprefix("@"):
        shutil.move(tmp_path / "train", tmp_path / place)
    else:
        [file_.rename(tmp_path / file_.name) for file_ in (tmp_path / "train").iterdir()]
    name = f"{file}@{tmp_path / place}" if folder.startswith("@") else file
    assert read(name)[0]["file_name"] == str(tmp_path / place / "0.png")


LISTS = {
    "a second column": (range(6), "{}  -1\n"),
    "blanks and # in names": ([f"my #{i}" for i in range(6)], "{}\n"),
    "blank lines and Windows' line ends": (range(6), "{}\r\n\r\n"),
    "a byte order mark": (range(6), "\ufeff{}\n"),
    "names of files": (range(6), "{}.jpg\n"),
    "below a folder": ([f"tour/{i}" for i in range(6)], "{}\n"),
    "one line twice": (range(6), "{0}\n{0}\n"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_voc_list_is_read_by_lines(tmp_path, kind):
    stems, line = LISTS[kind]
    name = exports.write_voc(tmp_path, stems, ".PnG", line)
    file = tmp_path / "ImageSets/Main/train.txt"
    file.write_text(file.read_text()[:1] + file.read_text()[1:].replace("\ufeff", ""))
    write_text(tmp_path / "Annotations/._0.xml", "no XML")
    assert boxes_of(read(name)) == BOXES


@pytest.mark.parametrize(
    "tags, crowd",
    [
        ("", 0),
        ("<pose/><truncated>0.06</truncated><difficult/>", 0),
        ("<difficult>False</difficult>", 0),
        ("<difficult>1</difficult><part><bndbox><xmin>0</xmin></bndbox></part>", 1),
    ],
)
def test_tags_of_voc_may_be_absent_and_difficult_boxes_do_not_count(tmp_path, tags, crowd):
    name = exports.write_voc(tmp_path)
    box = (0, 4.5, 5.25, 50.75, 60)
    write_text(tmp_path / "Annotations/0.xml", exports.voc_xml([box], tags, (0, 0)))
    image = read(name)[0]
    (label,) = image["annotations"]
    assert label["iscrowd"] == crowd and label["bbox"] == list(box[1:])  # decimals are kept
    assert (image["width"], image["height"]) == exports.SIZE  # from the file


def test_voc_may_lie_in_a_folder_for_each_split(tmp_path):
    for split, part in (("train", slice(0, 4)), ("valid", slice(4, 6))):
        for i, boxes in list(enumerate(draw_boxes()))[part]:
            write_image(tmp_path / split / f"{i}.jpg")
            write_text(
                tmp_path / split / f"{i}.xml", exports.voc_xml(boxes[:2] if i < 4 else boxes)
            )
    (tmp_path / "valid/4.xml").rename(tmp_path / "valid/4.XML")
    write_image(tmp_path / "valid/6.jpg")  # no objects
    assert boxes_of(read(f"{tmp_path}:valid")) == [*BOXES[4:], []]
    assert len(read_voc(str(tmp_path), "train")[1]["thing_classes"]) == 3


@pytest.mark.parametrize("missing", ["Annotations/3.xml", "JPEGImages/3.png"])
def test_a_missing_file_of_voc_is_named(tmp_path, missing):
    name = exports.write_voc(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match="3.(xml|[*])"):
        read(name)
    with pytest.raises(FileNotFoundError, match=r"lists: \['train'\]"):
        register_by_name([f"{tmp_path}:trian"])
    write_text(tmp_path / "Annotations/0.xml", "")
    with pytest.raises(ValueError, match="0.xml' has 'text', .*no element found"):
        read_voc(str(tmp_path), "train")


YAMLS = {
    "names by number": "train: images\nnames: {0: cat, 1: dog, 2: emu}\nnc: 3\n",
    "only their number": "train: images\nnc: 3\n",
    "a path": "path: {root}\ntrain: ./images\nnames: [cat, dog, emu]\n",
    "folders": "train: [images]\nnames: [cat, dog, emu]\n",
    "as Roboflow writes": "train: ../images\nnames: [cat, dog, emu]\n",
    "a list": "train: list.txt\nnames: [cat, dog, emu]\n",
    "keypoints": "train: images\nkpt_shape: [1, 2]\nnames: [cat, dog, emu]\n",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_yolo_file_may_say_it_in_many_ways(tmp_path, kind):
    name = exports.write_yolo(tmp_path, YAMLS[kind].replace("{root}", str(tmp_path)))
    write_text(tmp_path / "list.txt", "".join(f"./images/{i}.png\n" for i in range(6)))
    write_text(tmp_path / "images/._0.png", "no image")
    if kind == "keypoints":
        file = tmp_path / "labels/0.txt"
        file.write_text(file.read_text().replace("\n", " 0.5 0.5\n"))
    (tmp_path / "labels/5.txt").unlink()  # no objects
    assert boxes_of(read(name)) == [*BOXES[:5], []]


def test_polygons_of_yolo_are_masks_with_boxes_around_them(tmp_path):
    name = exports.write_yolo(tmp_path)
    write_text(tmp_path / "labels/0.txt", "1 0.25 0.5 0.5 0.5 0.5 0.75\n")
    (label,) = read(name)[0]["annotations"]
    assert label["bbox"] == [24, 40, 24, 20] and label["segmentation"] == [[24, 40, 48, 40, 48, 60]]


@pytest.mark.parametrize(
    "line", ["3 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1", "0 1 1 1 1 1", "cat 1 1 1 1"]
)
def test_a_line_of_yolo_that_is_no_label_is_named(tmp_path, line):
    name = exports.write_yolo(tmp_path)
    write_text(tmp_path / "labels/2.txt", line)
    with pytest.raises(ValueError, match=f"labels/2.txt' has {line!r}"):
        read(name)


def test_vocs_evaluator_gives_way_where_a_class_has_no_box(standard_data, tmp_path):
    cfg = load_config("detco.yaml", "OUTPUT_DIR", str(tmp_path))
    kinds = [type(build_evaluator(cfg, "voc_2007_test")).__name__]
    images = DatasetCatalog.get("voc_2007_test")
    kept = [image for image in images if all(x["category_id"] for x in image["annotations"])]
    DatasetCatalog.pop("voc_2007_test")
    DatasetCatalog.register("voc_2007_test", lambda: json.loads(json.dumps(kept)))
    kinds.append(type(build_evaluator(cfg, "voc_2007_test")).__name__)
    assert kinds == ["PascalVOCDetectionEvaluator", "COCOEvaluator"]
    assert score("voc_2007_test", tmp_path)["bbox"]["AP"] == 100
