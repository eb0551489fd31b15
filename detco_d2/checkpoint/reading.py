"""Read a weight file without running anything that is in it."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

# What a legacy .pkl of numpy arrays is made of (Detectron2's and MoCo's converted files).
_ALLOWED_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED_GLOBALS:
            return super().find_class(module, name)
        raise ValueError(f"it asks for {module}.{name}, which no array of weights needs")


def read_weight_file(path: str) -> dict[str, Any]:
    """The contents of a .pth, .pt, .tar or .pkl weight file, on the CPU.

    torch files load with `weights_only`, pickles through an allow-list of array types.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable weight file, or one that would run code; names the reason.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No weight file at {path!r}.")
    try:
        if path.endswith(".pkl"):
            content = io.BytesIO(Path(path).read_bytes())
            data = _ArrayUnpickler(content, encoding="latin1").load()
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"Refused the weight file {path!r}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path!r} holds a {type(data).__name__}, not a dict of weights.")
    return data


def tensors_of(data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by name of a loaded file, unwrapped from `model` or `state_dict`."""
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), dict):
            data = data[key]
    return {
        name: torch.as_tensor(value)
        for name, value in data.items()
        if isinstance(value, torch.Tensor) or hasattr(value, "__array__")
    }
