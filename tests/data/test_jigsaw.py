"""The geometry of the local view (paper 3.4: 3x3 cells of 85, a 64 crop in each, shuffled)."""

import torch

from detco_d2.data.jigsaw import cut_jigsaw, cut_jigsaw_batch, draw_jigsaw


def coordinates(size):
    """A crop whose first two channels hold each pixel's row and column."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)


def test_every_patch_is_the_pixels_it_should_be():
    cells, offsets = draw_jigsaw(255, 64)
    patches = cut_jigsaw(coordinates(255), 64, cells, offsets)
    assert patches.shape == (9, 3, 64, 64)
    for patch, cell, (dy, dx) in zip(patches, cells.tolist(), offsets.tolist()):
        rows = torch.arange(64) + 85 * (cell // 3) + dy
        columns = torch.arange(64) + 85 * (cell % 3) + dx
        assert torch.equal(patch[0].long(), rows[:, None].expand(64, 64))
        assert torch.equal(patch[1].long(), columns[None].expand(64, 64))


def test_draws_are_permutations_with_an_offset_a_patch_over_the_whole_slack():
    torch.manual_seed(0)
    draws = [draw_jigsaw(255, 64) for _ in range(200)]
    assert all(sorted(cells.tolist()) == list(range(9)) for cells, _ in draws)
    assert len({tuple(cells.tolist()) for cells, _ in draws}) > 190  # a new one for each image
    offsets = torch.stack([o for _, o in draws])
    assert (offsets.min(), offsets.max()) == (0, 21)  # 85 - 64
    assert len({tuple(o) for o in offsets[0].tolist()}) > 4  # of the patches of an image


def test_a_batch_is_cut_like_each_of_its_crops():
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (5, 3, 63, 63), dtype=torch.uint8)
    draws = [draw_jigsaw(63, 16) for _ in crops]
    cells, offsets = (torch.stack(values) for values in zip(*draws))
    expected = [cut_jigsaw(crop, 16, *draw) for crop, draw in zip(crops, draws)]
    assert torch.equal(cut_jigsaw_batch(crops, 16, cells, offsets), torch.stack(expected))
