"""Bad images: refused with a reason, replaced by the seed alone, reported; all others are used."""

import io
import itertools
import os
import tarfile
import tempfile
import traceback
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from detco_d2.data.datasets import list_images
from detco_d2.data.decode import UnreadableImage, decode_image
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import StreamDataset, build_pretrain_loader
from detco_d2.data.tar import TarImages

from ..conftest import load_config
from ..data.test_decode import decode, encode, photo, pixel, refuse
from .harness import fuzz, mutations, noise


def cut(content):
    return content[: len(content) * 6 // 10]


def zero_fill(content):
    return cut(content) + bytes(len(content) - len(cut(content)))


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("damage", [cut, zero_fill])
def test_a_jpeg_without_its_end_is_refused_also_when_decoded_smaller(damage, progressive, factor):
    content = encode(photo(), "JPEG", quality=95, subsampling=0, progressive=progressive)
    assert decode(content, factor=factor).size == (160 // factor, 120 // factor)
    refuse(damage(content), "damaged", factor=factor)


def test_what_pillow_decodes_although_it_is_damaged_is_refused():
    for kind, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {})):
        content = zero_fill(encode(photo((128, 96)), kind, **options))
        Image.open(io.BytesIO(content)).load()  # no error
        refuse(content, "damaged: the compressed pixels are incomplete or changed")
    changed = bytearray(encode(photo()))
    changed[-30] ^= 1
    refuse(bytes(changed), "damaged|broken")


def test_the_end_mark_of_a_thumbnail_or_of_a_second_image_does_not_count():
    options = {"quality": 95, "subsampling": 0}
    thumbnail = encode(photo((32, 24)), "JPEG")
    content = encode(photo(), "JPEG", comment=thumbnail, **options)
    if thumbnail not in content:  # Pillow before 9.4 writes no comment
        mark = b"\xff\xfe" + (len(thumbnail) + 2).to_bytes(2, "big")
        content = content[:2] + mark + thumbnail + content[2:]
    assert decode(content).size == (160, 120)
    refuse(zero_fill(content), "damaged")
    refuse(zero_fill(encode(photo(), "JPEG", **options)) + thumbnail, "damaged")


def test_a_jpeg_with_anything_behind_its_end_is_used():
    content = encode(photo(), "JPEG")
    expected = decode(content).tobytes()
    movie = encode(photo(seed=1), "MPO", save_all=True, append_images=[photo(seed=2)])
    for more in (bytes(4096), b"ftypmp42" * 1000, movie):
        assert decode(content + more).tobytes() == expected
    assert decode(movie).tobytes() == decode(encode(photo(seed=1), "JPEG")).tobytes()


@pytest.mark.parametrize("lax", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "MPO"])
def test_a_file_of_any_format_that_is_cut_is_refused(kind, lax, monkeypatch):
    """Also when another library has made Pillow lax."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lax)
    refuse(cut(encode(photo(), kind)), r"\w")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lax


def test_what_is_no_image_or_would_run_another_program_is_refused():
    ghostscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n"
    for content in (b"", b"<html><body>404 Not Found</body></html>", ghostscript):
        assert " 0x" not in str(refuse(content, "no image, or none of JPEG, PNG"))


def test_what_cannot_be_opened_is_unreadable_and_named(tmp_path):
    mapper = DetCoDatasetMapper(load_config("detco.yaml"))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    for name, why in (("folder", "IsADirectory"), ("link", "FileNotFound"), ("z\0", "null byte")):
        path = str(tmp_path / f"{name}.jpg")
        with pytest.raises(UnreadableImage, match=why) as caught:
            mapper.decode({"file_name": path})
        assert str(caught.value) == f"Cannot read the image {path!r}: {caught.value.reason}"
        assert caught.value.path == path
    with pytest.raises(UnreadableImage, match="no image"):
        mapper.decode({"file_name": "shard.tar/a.jpg", "image_bytes": b""})


def test_a_keyboard_interrupt_is_no_bad_image():
    class Interrupted(io.BytesIO):
        def read(self, *args):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_image(Interrupted(), min_side=1, max_pixels=10)


@pytest.mark.parametrize("augmentation", ["pil", "fast", "device"])
def test_the_narrowest_images_of_a_lowered_min_side_make_views(augmentation):
    options = ["INPUT.DETCO.MIN_SIDE", 1, "INPUT.DETCO.AUGMENTATION", augmentation]
    mapper = DetCoDatasetMapper(load_config("detco.yaml", *options))
    for size in ((1, 1), (1, 5000), (5000, 1)):
        sample = mapper({"file_name": "", "image_bytes": encode(Image.new("RGB", size), "JPEG")})
        assert sample["global_query"].numel() == 3 * 224 * 224


def test_a_header_that_claims_2500_megapixels_allocates_nothing(monkeypatch):
    content = bytearray(encode(Image.new("RGB", (8, 8))))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", lambda image: pytest.fail("allocates"))
    refuse(bytes(content), "more pixels than INPUT.DETCO.MAX_PIXELS", max_pixels=89478485)


def test_max_pixels_is_the_limit_whatever_pillow_is_set_to(monkeypatch):
    content = encode(Image.new("L", (100, 100)))
    for limit in (None, 50, 10**9):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for pixels in (9999, 6000, 100):  # Pillow would warn at the first two, and use the image
            reason = f"more pixels than INPUT.DETCO.MAX_PIXELS .{pixels}."
            refuse(content, reason, max_pixels=pixels)
        assert decode(content, max_pixels=10_000).size == (100, 100)
        assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize(
    "key, value, sizes",
    [
        ("MIN_SIDE", 16, [(1, 1), (1, 5000), (5000, 1), (15, 300)]),  # the default
        ("MIN_SIDE", 51, [(100, 50)]),
        ("MAX_PIXELS", 4999, [(100, 50)]),
        ("MAX_PIXELS", 89478485, [(9600, 9600)]),  # the default
    ],
)
def test_the_limits_of_the_config_reach_the_decoder(key, value, sizes):
    mapper = DetCoDatasetMapper(load_config("detco.yaml", f"INPUT.DETCO.{key}", value))
    for size in sizes:
        image = {"file_name": "a.png", "image_bytes": encode(Image.new("1", size))}
        with pytest.raises(UnreadableImage, match=rf"'a.png': .*INPUT.DETCO.{key} \({value}\)"):
            mapper.decode(image)
    larger = load_config("detco.yaml", "INPUT.DETCO.MIN_SIDE", 1, "INPUT.DETCO.MAX_PIXELS", 10**8)
    assert DetCoDatasetMapper(larger).decode(image).size == size


SMALL = ["moco_v2.yaml", "INPUT.DETCO.GLOBAL_SIZE", 16]
BROKEN = ["03.jpg", "11.jpg", "17.jpg"]


def write_images(folder):
    """20 images called .jpg, of which one is cut, one empty, one a web page, and one a good PNG."""
    contents = [encode(photo(seed=i), "JPEG" if i else "PNG") for i in range(20)]
    contents[3], contents[11], contents[17] = cut(contents[3]), b"", b"<html></html>"
    folder.mkdir()
    for i, content in enumerate(contents):
        (folder / f"{i:02d}.jpg").write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


def batches(folder, mapper=None, workers=0):
    mapper = mapper or DetCoDatasetMapper(load_config(*SMALL))
    options = dict(total_batch_size=4, num_workers=workers, seed=5)
    loader = build_pretrain_loader(list_images(str(folder)), mapper, **options)
    return list(itertools.islice(iter(loader), 10))


def test_a_run_uses_the_readable_images_and_reports_the_others(folder):
    found = batches(folder)  # 40 positions: two epochs
    used = [os.path.basename(name) for batch in found for name in batch["file_name"]]
    assert set(used) == {f"{i:02d}.jpg" for i in range(20)} - set(BROKEN)
    assert len(used) == 40
    reported = [pair for batch in found for pair in batch["bad_images"]]
    reasons = {os.path.basename(path): reason for path, reason in reported}
    assert set(reasons) == set(BROKEN)
    assert reasons["11.jpg"] == reasons["17.jpg"] != reasons["03.jpg"]
    assert any(not batch["bad_images"] for batch in found)


def test_the_replacement_changes_with_the_seed_and_the_position_alone(folder):
    mapper = DetCoDatasetMapper(load_config(*SMALL))
    images = list_images(str(folder))

    def replacements(seed):
        stream = StreamDataset(images, mapper, seed)
        broken = (p for p in range(60) if images[stream.index_at(p)]["file_name"][-6:] in BROKEN)
        return {position: stream[position] for position in broken}

    samples, *others = [replacements(seed) for seed in (5, 5, 6)]
    ours, again, theirs = (
        {position: sample["file_name"] for position, sample in found.items()}
        for found in (samples, *others)
    )
    assert ours == again and len(ours) == 9
    assert len(set(ours.values())) > 3 and ours != theirs
    position = next(iter(ours))  # the views are those that the replacement has at this place
    only = [{"file_name": ours[position]}] * 20
    view = StreamDataset(only, mapper, 5)[position]["global_key"]
    assert torch.equal(view, samples[position]["global_key"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_broken_files_stops_at_once_and_names_five(tmp_path, workers):
    for i in range(20):
        (tmp_path / f"{i:02d}.jpg").write_bytes(cut(encode(photo(seed=i), "JPEG")))
    with pytest.raises(RuntimeError, match="100 images of DATASETS.TRAIN that were") as caught:
        batches(tmp_path, workers=workers)
    traceback.clear_frames(caught.tb)  # left to the garbage collection, workers take 10 s to end
    message = str(caught.value)
    lines = message[message.index("the first are:") :].splitlines()[1:]
    assert len([line for line in lines if ".jpg': damaged: the comp" in line]) == 5


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_an_error_of_the_views_is_no_bad_image(folder, error, monkeypatch):
    def fail(*args):
        raise error("a bug")

    mapper = DetCoDatasetMapper(load_config(*SMALL))
    monkeypatch.setattr(mapper, "_make_view", fail)
    with pytest.raises(error, match="a bug"):
        batches(folder, mapper)


TINY = photo((24, 20))
SEEDS = {
    "JPEG": encode(TINY, "JPEG"),
    "progressive": encode(TINY, "JPEG", progressive=True),
    "EXIF": encode(TINY, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    "CMYK": encode(TINY.convert("CMYK"), "JPEG"),
    "MPO": encode(TINY, "MPO", save_all=True, append_images=[TINY]),
    "PNG": encode(TINY),
    "APNG": encode(TINY, save_all=True, append_images=[TINY.rotate(90)]),
    "palette": encode(TINY.quantize(8), transparency=1),
    "16-bit": encode(pixel("I;16", 999)),
    "GIF": encode(TINY.quantize(8), "GIF", save_all=True, append_images=[TINY.rotate(90)]),
    "BMP": encode(TINY, "BMP"),
    "PPM": encode(TINY, "PPM"),
    "text PPM": b"P3 4 4 255\n" + b"1 2 3 " * 16,
    "TIFF": encode(TINY, "TIFF"),
    "LZW": encode(TINY, "TIFF", compression="tiff_lzw"),
    "WebP": encode(TINY, "WEBP"),
    "animated WebP": encode(TINY, "WEBP", save_all=True, append_images=[TINY.rotate(90)]),
}
ZEROS = st.builds(bytes, st.integers(0, 2000))


@fuzz(5)
@given(st.sampled_from(sorted(SEEDS)).flatmap(lambda kind: mutations(SEEDS[kind], noise | ZEROS)))
def test_a_mutated_image_is_an_image_or_refused(content):
    """Any outcome but an image and a refusal fails."""
    try:
        image = decode(content, max_pixels=100_000, factor=2)
    except UnreadableImage as error:
        assert error.reason and " at 0x" not in error.reason
        return
    assert image.mode == "RGB" and 1 <= image.width * image.height <= 100_000
    assert len(image.tobytes()) == 3 * image.width * image.height


def shard_content():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(3):
            content = encode(pixel("RGB", (i, 0, 0)).resize((16, 16)))
            info = tarfile.TarInfo(f"{i}.png" if i else f"{'long' * 40}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@fuzz(1 / 3)
@example(shard_content())
@given(mutations(shard_content(), noise | ZEROS))
def test_a_mutated_shard_is_read_or_refused_by_name(content):
    """Any outcome but two epochs of it and our own refusals fails."""
    mapper = DetCoDatasetMapper(load_config(*SMALL))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shard.tar")
        path.write_bytes(content)
        try:
            stream = StreamDataset(TarImages([str(path)], folder), mapper, 5)
            for position in range(2 * len(stream)):
                assert stream[position]["global_key"].shape == (3, 16, 16)
        except ValueError as error:
            assert f"The tar shard {str(path)!r}" in str(error)
        except RuntimeError as error:
            assert "that were tried in a row" in str(error)
