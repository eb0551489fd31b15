"""Read a weight file without running anything that is in it."""

import argparse
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ZIP = b"PK\x03\x04"
# How a torch file of before 1.6 begins: a pickle of torch.serialization.MAGIC_NUMBER.
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What a file of safetensors may say of itself, and we wrote, see export.py.
SAFETENSORS_KEYS = ("__author__", "input_spec")


def read_weight_file(path: str) -> dict[str, Any]:
    """The contents of a weight file, on the CPU.

    What it is, its contents say, whatever it is called: torch files (.pth, .pt, .tar, .pyth, ...)
    load with `weights_only`, safetensors through their library, other pickles (.pkl) through an
    allow-list of array types. Nothing in a file is run, and a pickle of arrays takes memory in
    proportion to the file. Not helped is what torch lets a torch file ask for (an empty `bytearray`
    of any size), nor a dict key of tuples in tuples, which Python can take any time to hash.

    Raises:
        OSError: no such file, a folder, or a file that may not be read.
        ValueError: no weight file, or one that asks for other things than weights; names them.
        ImportError: a file of safetensors, and no library of that name.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"The weights {path!r} are a folder; name a file in it.")
    if not file.is_file():
        raise FileNotFoundError(f"No weight file at {path!r}.")
    with file.open("rb") as stream:
        head = stream.read(64)
    try:
        if head.startswith(_ZIP):
            data = _read_zip(file)
        elif _LEGACY_TORCH in head:
            data = _read_torch(file, file.read_bytes())
        elif _is_safetensors(head, file.stat().st_size):
            data = _read_safetensors(file)
        else:
            from .arrays import read_arrays  # few runs need it

            data = read_arrays(file.read_bytes())
    except ImportError:
        raise
    except Exception as error:
        # without torch's own message, which advises to load such a file unsafely
        raise ValueError(f"Refused the weight file {path!r}: {_words(error)}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path!r} holds a {type(data).__name__}, not a dict of weights.")
    return data


def _is_safetensors(head: bytes, size: int) -> bool:
    """The length of a header in JSON, and the header."""
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            f"{str(file)!r} is a file of safetensors; to read it: pip install safetensors"
        ) from error
    with safe_open(file, framework="pt") as content:
        # copies, since the file is only mapped into memory, and may be written over
        model = {name: content.get_tensor(name).clone() for name in content.keys()}
        said = content.metadata() or {}
    return {"model": model, **{k: json.loads(said[k]) for k in SAFETENSORS_KEYS if k in said}}


def _read_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        if sum(item.file_size for item in archive.infolist()) > file.stat().st_size:
            raise ValueError("it is compressed, which torch's files are not")
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return _read_torch(file, b"".join(archive.read(name) for name in names[:1]))


def _read_torch(file: Path, pickles: bytes) -> Any:
    try:
        with torch.serialization.safe_globals([(_Settings, "argparse.Namespace")]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        from .refusals import what_torch_refused

        raise ValueError(what_torch_refused(_words(error), pickles)) from None


class _Settings(argparse.Namespace):
    """Stands for the command line in a checkpoint (timm's, DINO's); attributes, and no more."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = dict(state)


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def tensors_of(data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by name of a loaded file.

    Unwrapped from `model`, `state_dict`, `model_state`, Caffe2's `blobs` or VISSL's nest of dicts,
    without the `module.` of DDP.

    Raises:
        ValueError: a tensor whose numbers are not all there (sparse, expanded, on no device).
    """
    keys = ["model", "state_dict", "model_state", "model_state_dict", "blobs"]
    if "classy_state_dict" in data:
        keys = ["classy_state_dict", "base_model", "model", "trunk"]
    for key in keys:
        if isinstance(data.get(key), dict):
            data = data[key]
    kinds = (torch.Tensor, np.ndarray, np.generic)
    tensors = {
        name: torch.as_tensor(value)
        for name, value in data.items()
        if isinstance(name, str) and isinstance(value, kinds)
    }
    strange = [name for name, tensor in tensors.items() if not _is_dense(tensor)]
    if strange:
        raise ValueError(f"Not plain tensors of numbers in the weights: {strange[:8]}.")
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    # an expanded tensor can claim any number of elements
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
