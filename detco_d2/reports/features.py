"""What features look like: principal components, nearest patches and correspondences.

Features are compared by the cosine between grid cells, as the contrastive losses compare
embeddings, so that every cell is scaled to length one first.
"""

# Shape shorthand in this module:
#   N: images, C: channels, h, w: a stage's grid, S: side of a square picture in pixels, M: matches
# Places and boxes are (x, y) and (left, top, right, bottom) as shares of a picture's sides.

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from ..data.decode import MAX_PIXELS, MIN_SIDE, UnreadableImage, decode_image
from ..data.photometric import apply_fast
from ..data.views import RATIO, ViewDraw, ViewSettings

Box = tuple[float, float, float, float]
_BATCH = 16  # images that pass a backbone together


def read_square(path: str, size: int) -> np.ndarray:
    """The middle square of an image file, of shape (size, size, 3), RGB, uint8.

    Raises:
        UnreadableImage: naming the file, and why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            image = decode_image(file, min_side=MIN_SIDE, max_pixels=MAX_PIXELS)
    except (OSError, UnreadableImage) as error:
        raise UnreadableImage(str(error), path) from error
    side = min(image.size)
    return np.array(TF.center_crop(image, [side, side]).resize((size, size), Image.LANCZOS))


def embed(
    backbone: Callable[[torch.Tensor], dict[str, torch.Tensor]], pictures: Sequence[np.ndarray]
) -> dict[str, torch.Tensor]:
    """Features of pictures without what the zeros around an image do to them.

    A network pads each convolution with zeros, by which cells know how far the edge is: in deep
    stages that is most of what differs. Pictures are continued by their mirror image instead, and
    the cells of that are cut off again.

    Args:
        backbone: maps images of shape (N, 3, H, W) to maps of each stage.
        pictures: N of shape (S, S, 3), uint8, where S is a multiple of 32.

    Returns:
        of every stage, of shape (N, C, S / stride, S / stride).
    """
    size = len(pictures[0])
    margin = -(-size // 128) * 32  # a quarter or more
    features: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(pictures), _BATCH):
        batch = torch.from_numpy(np.stack(pictures[start : start + _BATCH]))
        padded = F.pad(batch.permute(0, 3, 1, 2).float(), [margin] * 4, "reflect")
        for stage, maps in backbone(padded).items():
            edge = margin * maps.shape[-1] // padded.shape[-1]
            features.setdefault(stage, []).append(maps[..., edge:-edge, edge:-edge])
    return {stage: torch.cat(maps) for stage, maps in features.items()}


def _unit(maps: torch.Tensor) -> torch.Tensor:
    return F.normalize(maps.float(), dim=-3)


def principal_colours(maps: torch.Tensor) -> np.ndarray:
    """The first three principal components of all cells, as red, green and blue.

    The components are shared by the images, so that one colour means one thing in all of them.
    Each is scaled from its 1st to its 99th percentile; its sign, which the data leave open, is the
    one that makes the largest of its coefficients positive.

    Args:
        maps: features of shape (N, C, h, w).

    Returns:
        of shape (N, h, w, 3), uint8; a component without variance is grey.
    """
    cells = _unit(maps).permute(0, 2, 3, 1).flatten(0, 2).double()
    cells = cells - cells.mean(0)
    values, vectors = torch.linalg.eigh(cells.T @ cells / len(cells))
    axes, variance = vectors.flip(1)[:, :3], values.flip(0)[:3]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = (cells @ (axes * largest.sign())).numpy()
    low, high = np.percentile(scores, [1, 99], axis=0)
    empty = variance.numpy() < 1e-9 * max(float(values.sum()), 1e-9)
    shares = np.where(
        empty, 0.5, (scores - low) / np.where(empty, 1.0, np.maximum(high - low, 1e-9))
    )
    colours = np.full((len(cells), 3), 0.5)
    colours[:, : shares.shape[1]] = shares.clip(0, 1)
    n, _, h, w = maps.shape
    return (255 * colours).round().astype(np.uint8).reshape(n, h, w, 3)


@dataclass(frozen=True)
class Patch:
    """The place in an image that is most similar to a query patch.

    Attributes:
        box: where.
        similarity: cosine, from -1 to 1.
        heat: the cosine of every cell with the query, of shape (h, w).
    """

    box: Box
    similarity: float
    heat: np.ndarray


def snap(box: Box, h: int, w: int) -> Box:
    """The nearest box that consists of whole cells of a grid, at least one.

    >>> snap((0.25, 0.55, 0.7, 0.6), 4, 4)
    (0.25, 0.5, 0.75, 0.75)
    """
    left, right = _snap_side(box[0], box[2], w)
    top, bottom = _snap_side(box[1], box[3], h)
    return left / w, top / h, right / w, bottom / h


def _snap_side(low: float, high: float, cells: int) -> tuple[int, int]:
    length = min(max(1, round((high - low) * cells)), cells)
    first = min(max(0, round(low * cells)), cells - length)
    return first, first + length


def best_patches(query: torch.Tensor, box: Box, maps: torch.Tensor) -> list[Patch]:
    """Of every image the patch that is most similar to the query's, of the same size.

    A patch is the mean of its unit cells.

    Args:
        query: features of the query image, of shape (C, h, w).
        box: of the query patch; snapped to the grid.
        maps: features of the images to search, of shape (N, C, h, w).
    """
    h, w = query.shape[-2:]
    (left, right), (top, bottom) = _snap_side(box[0], box[2], w), _snap_side(box[1], box[3], h)
    rows, columns = bottom - top, right - left
    wanted = F.normalize(_unit(query)[:, top:bottom, left:right].mean((1, 2)), dim=0)
    cells = _unit(maps)
    heat = torch.einsum("c,nchw->nhw", wanted, cells)
    windows = _unit(F.avg_pool2d(cells, (rows, columns), stride=1))
    similarity = torch.einsum("c,nchw->nhw", wanted, windows).flatten(1)
    across = w - columns + 1
    patches = []
    for i, place in enumerate(similarity.argmax(1).tolist()):
        y, x = divmod(place, across)
        found = (x / w, y / h, (x + columns) / w, (y + rows) / h)
        patches.append(Patch(found, similarity[i, place].item(), heat[i].numpy()))
    return patches


@dataclass(frozen=True)
class View:
    """A random view of an image, and where it comes from.

    Attributes:
        picture: of shape (S, S, 3), RGB, uint8.
        box: the crop, as shares of the image's sides.
        flipped: left and right are changed, after the crop.
    """

    picture: np.ndarray
    box: Box
    flipped: bool

    def to_image(self, places: np.ndarray) -> np.ndarray:
        """Places in the view, of shape (M, 2), as places in the image."""
        places = places * [-1, 1] + [1, 0] if self.flipped else places
        low, high = np.array(self.box[:2]), np.array(self.box[2:])
        return low + places * (high - low)

    def from_image(self, places: np.ndarray) -> np.ndarray:
        """Places in the image as places in the view, of which some may lie outside 0..1."""
        low, high = np.array(self.box[:2]), np.array(self.box[2:])
        places = (places - low) / (high - low)
        return places * [-1, 1] + [1, 0] if self.flipped else places


def draw_views(picture: np.ndarray, seed: int) -> tuple[View, View]:
    """Two views as pretraining draws them (MoCo v2's set), but that each keeps most of the image.

    Args:
        picture: of shape (S, S, 3), RGB, uint8.
        seed: of all draws.
    """
    size, image = len(picture), Image.fromarray(picture)
    # A view of half the image or more, so that two of them always share a part.
    settings = ViewSettings(size, (0.5, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, (0.1, 2.0))
    views = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(2):
            box = T.RandomResizedCrop.get_params(image, list(settings.scale), list(RATIO))
            top, left, height, width = box
            crop = TF.resized_crop(image, *box, [size, size])
            flipped = torch.rand(1).item() < settings.flip_prob
            crop = TF.hflip(crop) if flipped else crop
            coloured = apply_fast(np.asarray(crop), ViewDraw(settings).photometric())
            place = (left / size, top / size, (left + width) / size, (top + height) / size)
            views.append(View(coloured, place, flipped))
    return views[0], views[1]


def match_cells(
    a: torch.Tensor, b: torch.Tensor, mutual: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The most similar cell of the second feature map for cells of the first.

    Args:
        a, b: features of shape (C, h, w), not necessarily of one size.
        mutual: only where each is the other's most similar one; else for all cells of the first.

    Returns:
        the centres of the cells in a and in b, each of shape (M, 2), and their cosines, of shape
        (M,); the most similar first.
    """
    similarity = _unit(a).flatten(1).T @ _unit(b).flatten(1)
    cosines, nearest = similarity.max(1)
    order = cosines.argsort(descending=True, stable=True)
    if mutual:
        order = order[similarity.argmax(0)[nearest[order]] == order]
    return _centres(order, a), _centres(nearest[order], b), cosines[order].numpy()


def _centres(cells: torch.Tensor, maps: torch.Tensor) -> np.ndarray:
    h, w = maps.shape[-2:]
    return np.stack([(cells % w + 0.5) / w, (cells // w + 0.5) / h], axis=1)


def judge(
    places_a: np.ndarray, places_b: np.ndarray, views: tuple[View, View], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which matches could be right, and which of them are.

    Args:
        places_a, places_b: of shape (M, 2), one place in each of the views.
        views: where the places come from.
        grid: (h, w) of the second view.

    Returns:
        of shape (M,): whether the first place is seen in the second view at all, and whether its
        true place there is within one cell of the second place, up and down and across.
    """
    truth = views[1].from_image(views[0].to_image(places_a))
    visible = ((truth >= 0) & (truth <= 1)).all(1)
    cells = np.abs(truth - places_b) * [grid[1], grid[0]]
    return visible, visible & (cells <= 1 + 1e-6).all(1)
