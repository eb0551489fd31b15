"""Files of images that tests name, place and colour themselves."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


def save_image(
    path: str | Path, colour: tuple[int, ...] = (0, 0, 0), size: tuple[int, int] = (40, 30)
) -> None:
    """A PNG, whatever the path ends with."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")


def write_colours(root: Path, count: int, rng: np.random.Generator | None = None) -> Path:
    """So many images of each colour in the folder of their colour, or of one drawn by rng."""
    for name, colour in COLOURS.items():
        for i in range(count):
            folder = root / (name if rng is None else rng.choice(list(COLOURS)))
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([i, *name.encode()]).normal(0, 8, (32, 32, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    return root
