"""Pictures of features that were planted, so that what they must show is known."""

import doctest

import numpy as np
import pytest
import torch
from PIL import Image

from detco_d2.data.decode import UnreadableImage
from detco_d2.reports import features as feature_pictures
from detco_d2.reports.features import (
    View,
    best_patches,
    draw_views,
    embed,
    judge,
    match_cells,
    principal_colours,
    read_square,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(feature_pictures).failed == 0


def test_the_middle_square_of_a_file_is_read(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    picture = read_square(str(tmp_path / "wide.png"), 64)
    assert picture.shape == (64, 64, 3) and (picture == (10, 200, 30)).all()


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "a.jpg"
    if content:
        file.write_bytes(content)
    with pytest.raises(UnreadableImage, match="a.jpg"):
        read_square(str(file), 64)


def test_features_of_an_even_picture_do_not_know_where_the_edge_is():
    def backbone(images):
        kernel = torch.ones(1, 3, 63, 63)
        return {"res4": torch.nn.functional.conv2d(images, kernel, stride=16, padding=31)}

    even = np.full((128, 128, 3), 100, np.uint8)
    maps = embed(backbone, [even, even])["res4"]
    assert maps.shape == (2, 1, 8, 8) and maps.min() == maps.max() == 100 * 3 * 63 * 63


def test_planted_regions_get_a_colour_each_over_all_images():
    directions = torch.eye(16)[:4]
    regions = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    other = regions.flip(0)
    maps = torch.stack([directions[r].permute(2, 0, 1) for r in (regions, other)])
    colours = principal_colours(maps + 0.01 * noise(*maps.shape))
    assert colours.shape == (2, 8, 8, 3) and colours.dtype == np.uint8
    cells = colours.reshape(-1, 3).astype(float)
    labels = torch.stack([regions, other]).flatten().numpy()
    centres = np.stack([cells[labels == i].mean(0) for i in range(4)])
    nearest = np.linalg.norm(cells[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels).all()
    assert min(np.linalg.norm(centres[i] - centres[j]) for i in range(4) for j in range(i)) > 100


def test_colours_are_the_same_again_and_do_not_follow_the_length_of_features():
    maps = noise(2, 8, 5, 5)
    first = principal_colours(maps)
    assert (first == principal_colours(maps.clone())).all()
    scale = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    assert np.abs(first.astype(int) - principal_colours(maps * scale)).max() <= 1


@pytest.mark.parametrize("channels", [2, 8])
def test_components_that_are_not_there_are_grey(channels):
    maps = torch.zeros(1, channels, 4, 4)
    maps[:, 0, :, :2], maps[:, 1, :, 2:] = 1.0, 1.0
    colours = principal_colours(maps)
    assert (colours[..., 1:] == 128).all()
    assert abs(int(colours[0, 0, 0, 0]) - int(colours[0, 0, 3, 0])) == 255


def test_the_nearest_patch_of_a_copied_patch_is_its_copy():
    query, maps = noise(32, 8, 8), noise(3, 32, 8, 8, seed=1)
    maps[1, :, 4:6, 1:4] = 3.0 * query[:, 2:4, 5:8]  # the length does not count
    found = best_patches(query, (5 / 8, 2 / 8, 1.0, 4 / 8), maps)
    assert found[1].box == (1 / 8, 4 / 8, 4 / 8, 6 / 8)
    assert found[1].similarity == pytest.approx(1.0, abs=1e-5)
    assert max(found[0].similarity, found[2].similarity) < 0.9
    assert found[1].heat.shape == (8, 8)
    assert found[1].heat[4:6, 1:4].mean() > 2 * np.abs(found[0].heat).mean()


def whole(flipped: bool = False, box: tuple = (0.0, 0.0, 1.0, 1.0)) -> View:
    return View(np.zeros((8, 8, 3), np.uint8), box, flipped)


def test_correspondences_of_a_map_with_itself_are_all_right():
    maps = noise(16, 6, 6)
    a, b, cosines = match_cells(maps, maps, mutual=True)
    assert len(a) == 36 and (a == b).all() and cosines == pytest.approx(1.0)
    visible, right = judge(a, b, (whole(), whole()), (6, 6))
    assert visible.all() and right.all()


def test_correspondences_of_a_shifted_and_flipped_pair_recover_the_shift():
    scene = noise(16, 10, 14)
    a, b = scene[:, 1:9, 0:8], scene[:, 1:9, 4:12].flip(2)
    views = (
        whole(box=(0.0, 0.1, 8 / 14, 0.9)),
        whole(box=(4 / 14, 0.1, 12 / 14, 0.9), flipped=True),
    )
    places_a, places_b, cosines = match_cells(a, b, mutual=True)
    visible, right = judge(places_a, places_b, views, (8, 8))
    shared = cosines > 0.999
    assert shared.sum() == 32 and right[shared].all()  # four of eight columns are in both
    assert (cosines[:-1] >= cosines[1:]).all()
    everything = match_cells(a, b, mutual=False)[:2]
    assert len(everything[0]) == 64 and judge(*everything, views, (8, 8))[0].sum() == 32
    assert (visible == (places_a[:, 0] > 0.5)).all()  # what the second view does not show
    truth = views[1].from_image(views[0].to_image(places_a[shared]))
    assert truth == pytest.approx(places_b[shared])


def test_correspondences_of_random_features_are_near_chance():
    right_all = visible_all = 0
    for seed in range(40):
        a, b = noise(16, 12, 12, seed=seed), noise(16, 12, 12, seed=1000 + seed)
        places_a, places_b, _ = match_cells(a, b, mutual=True)
        visible, right = judge(places_a, places_b, (whole(), whole()), (12, 12))
        right_all, visible_all = right_all + right.sum(), visible_all + visible.sum()
    chance = ((3 * 12 - 2) / 144) ** 2  # the mean share of cells within one of a cell
    assert visible_all > 1000 and 0.5 * chance < right_all / visible_all < 2 * chance


def test_views_know_where_they_come_from_and_follow_their_seed():
    ramp = np.arange(256, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(0)), axis=-1)
    pixels = []
    for seed in range(6):
        views = draw_views(picture, seed)
        assert (views[0].picture == draw_views(picture, seed)[0].picture).all()
        for view in views:
            assert view.picture.shape == (256, 256, 3)
            there = view.to_image(np.array([[0.25, 0.5]]))
            assert view.from_image(there) == pytest.approx(np.array([[0.25, 0.5]]))
            assert (there >= 0).all() and (there <= 1).all()
        pixels.append(views[0].picture)
    assert len({p.tobytes() for p in pixels}) == 6


def test_the_place_of_a_point_in_a_view_is_the_point(monkeypatch):
    monkeypatch.setattr(feature_pictures, "apply_fast", lambda image, drawn: image)
    ramp = np.arange(256, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(0)), axis=-1)
    flips = set()
    for seed in range(6):
        for view in draw_views(picture, seed):
            flips.add(view.flipped)
            x, y = view.to_image(np.array([[100.5 / 256, 30.5 / 256]]))[0]
            assert view.picture[30, 100, :2] == pytest.approx([256 * x, 256 * y], abs=2)
    assert flips == {True, False}
