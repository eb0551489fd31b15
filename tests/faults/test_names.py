"""Roots that are not what they should be, and names that are nothing but data."""

import itertools
import os
import re
import shutil
import tempfile

import pytest

from detco_d2.data.datasets import list_images, load_images
from detco_d2.data.decode import UnreadableImage
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import build_pretrain_loader

from ..conftest import load_config
from ..pictures import save_image

NAMES = [
    "with space.png",
    " leading and trailing .png",
    "línea ünï 画像 😀.png",
    "new\nline.png",
    "quote'\"\\.png",
    "..png",
    "-rf.png",
    "%s {0} $HOME `id`.png",
    "http:x.png",
    "x" * 251 + ".png",  # 255 bytes, the longest that there is
    os.fsdecode(b"not \xff\xfe utf-8.png"),
    "\u202eright to left.PNG",
]


@pytest.fixture
def hostile(tmp_path):
    """The names, each in a folder of the same name, with a colour of its own."""
    for i, name in enumerate(NAMES):
        save_image(os.path.join(tmp_path, name, name), (i, 0, 0))
    return str(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_of_any_name_is_loaded_like_any_other(hostile, workers):
    options = ["INPUT.DETCO.GLOBAL_SIZE", 16, "INPUT.DETCO.COLOR_JITTER_PROB", 0.0]
    options += ["INPUT.DETCO.GRAYSCALE_PROB", 0.0, "INPUT.FORMAT", "RGB"]
    mapper = DetCoDatasetMapper(load_config("moco_v2.yaml", *options))
    images = load_images((hostile,))
    assert sorted(os.path.basename(d["file_name"]) for d in images) == sorted(NAMES)
    loader = build_pretrain_loader(images, mapper, total_batch_size=4, num_workers=workers, seed=0)
    seen = {}
    for batch in itertools.islice(iter(loader), len(NAMES) // 4):
        assert batch["bad_images"] == []
        for name, view in zip(batch["file_name"], batch["global_key"]):
            seen[os.path.basename(name)] = view[0].unique().tolist()
    assert seen == {name: [i] for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_a_message_about_a_name_is_one_line_that_any_terminal_can_print(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage) as caught:
        DetCoDatasetMapper(load_config("moco_v2.yaml")).decode({"file_name": str(path)})
    message = str(caught.value)
    assert "\n" not in message and message.encode()
    assert repr(str(path)) in message and caught.value.path == str(path)


def test_a_root_with_two_dots_behind_a_link_is_where_the_system_says(tmp_path):
    save_image(tmp_path / "disk" / "photos" / "a.png", (9, 8, 7))
    save_image(tmp_path / "photos" / "b.png")
    (tmp_path / "disk" / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    (image,) = list_images(str(tmp_path / "link" / ".." / "photos"))
    assert os.path.basename(image["file_name"]) == "a.png"
    mapper = DetCoDatasetMapper(load_config("moco_v2.yaml"))
    assert mapper.decode(image).getpixel((0, 0)) == (9, 8, 7)


def test_links_in_a_circle_are_walked_once_and_those_to_nowhere_are_listed(tmp_path):
    save_image(tmp_path / "root" / "a.png")
    save_image(tmp_path / "root" / "b" / "b.png")
    save_image(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "root" / "b" / "circle").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "third").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "z.png").symlink_to(tmp_path / "unmounted" / "a.png")
    found = [d["file_name"] for d in list_images(str(tmp_path / "root"))]
    names = ("a.png", "b/b.png", "other/c.png", "z.png")
    assert found == [str(tmp_path / "root" / name) for name in names]


@pytest.mark.parametrize("call", [list_images, lambda root: load_images((root,))])
def test_a_root_that_is_missing_or_a_file_says_so_with_all_that_helps(tmp_path, monkeypatch, call):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    (tmp_path / "photo.png").touch()
    for name, kind in (("none/val", "not there"), ("photo.png", "a file")):
        path = str(tmp_path / name)
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            call(path)
        message = str(caught.value)
        assert f"{path!r} is {kind}" in message
        assert f"the nearest folder above that exists is {str(tmp_path)!r}" in message
        assert "DETECTRON2_DATASETS is '/data/sets'" in message


def test_a_root_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "movie.mp4").touch()
    where = re.escape(repr(str(tmp_path)))
    extensions = r".*\.jfif, .*\.jpeg, \.jpg, .*\.png, .*\.tiff"
    with pytest.raises(FileNotFoundError, match=f"No image below: {where} .*{extensions}"):
        load_images((str(tmp_path),))


def test_what_systems_keep_beside_photographs_is_left_out_and_counted(tmp_path, caplog):
    taken = ["@home/j.png", "a.png", "b.JFIF", "c.jpe"]
    hidden = ["._b.jfif", ".hidden/d.png", "__MACOSX/e.png", "@eaDir/b/f.jpg", "lost+found/h.png"]
    hidden += ["$RECYCLE.BIN/g.png", "Thumbs.db", "#recycle/i.png"]
    for name in [*taken, *hidden, "k.heic", "l.heic", "m.txt", "README"]:
        file = tmp_path / ".photos" / name  # the root itself may be hidden
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with caplog.at_level("INFO", "detco_d2"):
        found = list_images(str(tmp_path / ".photos"))
    names = [os.path.relpath(d["file_name"], tmp_path / ".photos") for d in found]
    assert names == taken
    expected = ["1 .txt", "1 without an ending", "2 .heic", "2 hidden or of the system"]
    said, _, counts = caplog.text.strip().rpartition(": ")
    assert said.endswith("6 files are left out") and sorted(counts.split(", ")) == expected


@pytest.fixture
def nobody():
    """A folder that is open to all, and, for root, the rights of somebody else."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


@pytest.mark.parametrize("below", ["root", "root/locked"])
def test_a_folder_that_may_not_be_read_is_an_error_not_an_omission(nobody, below):
    user = os.geteuid()
    os.seteuid(os.getuid())
    save_image(os.path.join(nobody, "a.png"))
    locked = os.path.join(nobody, below)
    save_image(os.path.join(locked, "b.png"))
    os.chmod(locked, 0)
    os.seteuid(user)
    try:
        with pytest.raises(PermissionError, match=re.escape(f"{locked!r}: a folder below")):
            list_images(os.path.join(nobody, "root"))
    finally:
        os.seteuid(os.getuid())
        os.chmod(locked, 0o755)


def test_a_file_that_may_not_be_read_is_a_bad_image(tmp_path, nobody):
    path = os.path.join(nobody, "secret.png")
    os.seteuid(os.getuid())
    save_image(path)
    os.chmod(path, 0)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(UnreadableImage, match=r"secret\.png': PermissionError"):
        DetCoDatasetMapper(load_config("moco_v2.yaml")).decode({"file_name": path})
