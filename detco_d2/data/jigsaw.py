"""The local view: nine shuffled patches of one crop (paper section 3.4, after PIRL)."""

# Shape shorthand in this module:
#   S: side of the crop, p: side of a patch, in pixels

import torch

GRID = 3  # cells a side


def draw_jigsaw(crop_size: int, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw where the patches of one image come from, with torch's random generator.

    Returns:
        the cell (0..8, row by row) that each of the 9 outputs shows, of shape (9,), and the
        offset (y, x) in pixels of the patch inside its cell, of shape (9, 2).
    """
    slack = crop_size // GRID - patch_size
    return torch.randperm(GRID * GRID), torch.randint(0, slack + 1, (GRID * GRID, 2))


def cut_jigsaw(
    crop: torch.Tensor, patch_size: int, cells: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Cut the drawn patches, of shape (9, 3, p, p), out of a crop of shape (3, S, S)."""
    side = crop.shape[-1] // GRID
    patches = []
    for cell, (dy, dx) in zip(cells.tolist(), offsets.tolist()):
        y, x = cell // GRID * side + dy, cell % GRID * side + dx
        patches.append(crop[:, y : y + patch_size, x : x + patch_size])
    return torch.stack(patches)


def cut_jigsaw_batch(
    crops: torch.Tensor, patch_size: int, cells: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """:func:`cut_jigsaw` for N crops of shape (N, 3, S, S) at once, on any device."""
    side = crops.shape[-1] // GRID
    rows = cells // GRID * side + offsets[..., 0]
    columns = cells % GRID * side + offsets[..., 1]
    images = torch.arange(len(crops), device=crops.device)[:, None]
    windows = crops.unfold(2, patch_size, 1).unfold(3, patch_size, 1)  # a view of the crops
    return windows[images, :, rows, columns]
