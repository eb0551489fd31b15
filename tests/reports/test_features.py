"""Pictures of features that were planted, so that what they must show is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from detco_d2.data.decode import UnreadableImage
from detco_d2.reports.features import best_patches, embed, principal_colours, read_square


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_components_that_are_not_there_are_grey():
    maps = torch.zeros(1, 8, 4, 4)
    maps[:, 0, :, :2], maps[:, 1, :, 2:] = 1.0, 1.0
    colours = principal_colours(maps)
    assert (colours[..., 1:] == 128).all()
    assert abs(int(colours[0, 0, 0, 0]) - int(colours[0, 0, 3, 0])) == 255


def test_the_nearest_patch_of_a_copied_patch_is_its_copy():
    maps = noise(4, 32, 8, 8)
    maps[2, :, 3:7, 1:5] = 3.0 * maps[0, :, 2:6, 2:6]  # the length does not count
    found = best_patches(maps, (0.25, 0.25, 0.75, 0.75))
    assert found.boxes[0].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert found.boxes[2].tolist() == [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    assert found.similarity[[0, 2]] == pytest.approx(1.0, abs=1e-5)
    assert max(found.similarity[[1, 3]]) < 0.9
    assert found.heat.shape == (4, 8, 8)
    assert found.heat[2, 3:7, 1:5].mean() > 2 * np.abs(found.heat[1]).mean()
