import logging

import pytest
import torch

from detco_d2.probes.features import extract, pool_map
from detco_d2.weights.frozen import random_backbone


class Pictures(torch.utils.data.Dataset):
    def __init__(self, count, unreadable=()):
        self.pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        self.unreadable = unreadable

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return index, None if index in self.unreadable else self.pixels[index]


def test_a_map_is_averaged_over_all_of_it_or_over_cells():
    values = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    assert pool_map(values, "res5", "average").tolist() == [[7.5, 23.5]]
    cells = [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    assert pool_map(values, "res5", "grid").tolist() == [cells]


def test_cells_give_about_9000_numbers_at_every_stage_of_a_resnet_50():
    for i, width in enumerate((9216, 8192, 9216, 8192)):
        maps = torch.zeros(1, 256 * 2**i, 56 // 2**i, 56 // 2**i)
        assert pool_map(maps, f"res{i + 2}", "grid").shape == (1, width)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_the_backbone_in_the_order_of_their_numbers(workers):
    backbone, pictures = random_backbone(18), Pictures(7)
    before = torch.get_rng_state()
    options = dict(pools=["average", "grid"], batch_size=3, num_workers=workers)
    features, numbers = extract(backbone, pictures, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert numbers.tolist() == list(range(7))
    maps = backbone(pictures.pixels)
    assert set(features) == {(p, s) for p in ("average", "grid") for s in maps}
    for stage in maps:
        wanted = maps[stage].mean(dim=(2, 3))
        torch.testing.assert_close(features["average", stage], wanted, rtol=1e-4, atol=1e-4)
    assert features["grid", "res3"].shape == (7, 128 * 16)


def test_unreadable_images_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        features, numbers = extract(random_backbone(18), Pictures(6, {0, 1, 4}), batch_size=2)
    assert numbers.tolist() == [2, 3, 5] and len(features["average", "res2"]) == 3
    assert "3 of 6 images cannot be read" in caplog.text
    with pytest.raises(ValueError, match="None of 2 images can be read"):
        extract(random_backbone(18), Pictures(2, {0, 1}))
