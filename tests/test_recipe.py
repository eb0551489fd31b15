"""The recipe: what follows from the number of images, the batch and the length of a run."""

import pytest
import yaml
from detectron2.modeling import build_model

from detco_d2.recipe import KEYS, recipe

from .conftest import load_config
from .faults.harness import Run, command


@pytest.mark.parametrize(
    ("images", "batch", "iterations", "norm", "queue", "fill", "momentum", "rate", "warmup"),
    [
        (1_281_167, 256, 1_000_800, "", 65536, True, 0.999, 0.03, 0),  # the paper
        (1_281_167, 2048, 125_000, "", 65536, True, 0.999, 0.24, 3127),
        (3_000_000, 256, 10_000, "BN", 65536, False, 0.999, 0.03, 0),
        (5_011, 256, 4_000, "BN", 2505, False, 0.9975, 0.03, 0),
        (5_011, 32, 600, "BN", 2400, False, 0.99, 0.00375, 0),
        (300, 32, 1_800, "BN", 150, False, 0.994444, 0.00375, 0),
        (300, 32, 20, "BN", 80, False, 0.99, 0.00375, 0),
        (2, 1, 1, "BN", 1, False, 0.99, 0.03 / 256, 0),
        (10_000, 4096, 10, "BN", 5000, False, 0.99, 0.48, 1),
    ],
)
def test_the_recipe_is_this_table(
    images, batch, iterations, norm, queue, fill, momentum, rate, warmup
):
    values = [norm, queue, fill, momentum, pytest.approx(rate), warmup]
    assert recipe(images, batch, iterations) == dict(zip(KEYS, values))


def test_a_run_has_the_recipe_as_plain_values_but_for_what_is_given(scenes, tmp_path):
    words = command(f"{scenes}/train", tmp_path, "SOLVER.MAX_ITER", 2)
    words[words.index("configs/detco.yaml")] = "configs/own_images.yaml"
    code, text = Run(words).wait()
    assert code == 0 and "For these images: 'MODEL.DETCO.HEAD_NORM' 'BN'" in text, text[-3000:]
    cfg = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert cfg["MODEL"]["DETCO"]["HEAD_NORM"] == "BN"
    assert cfg["MODEL"]["DETCO"]["QUEUE_LENGTH"] == 10  # given
    assert Run(words).wait()[0] == 0  # the same command goes on


def test_an_open_config_says_what_is_missing_where_a_model_is_built():
    with pytest.raises(ValueError, match="HEAD_NORM is None"):
        build_model(load_config("own_images.yaml"))
