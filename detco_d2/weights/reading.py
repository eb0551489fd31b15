"""Read a weight file without running anything that is in it."""

import io
import json
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import StandIn, read_pickle
from .refusals import what_it_is, what_zip_it_is

_ZIP = b"PK\x03\x04"
# How a torch file of before 1.6 begins: a pickle of torch.serialization.MAGIC_NUMBER.
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What a file of safetensors may say of itself, and we wrote, see export.py.
SAFETENSORS_KEYS = ("__author__", "input_spec")
# Dicts that mean the trained network, in order; others beside them keep their key in the names.
_MAIN = (
    "model",
    "state_dict",
    "model_state",
    "model_state_dict",
    "blobs",
    "classy_state_dict",
    "base_model",
    "trunk",
)
# What wrappers of modules add to names: DDP, torch.compile, FSDP, checkpointing.
_WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_ddp_module",
    "ddp",
)
_KINDS = (torch.Tensor, np.ndarray, np.generic)
_DEPTH = 40  # of dicts in dicts


def split_choice(path: str) -> tuple[str, str]:
    """`FILE#encoder` as the file, and the beginning of an encoder's names, or "" for none."""
    file, mark, choice = path.rpartition("#")
    return (file, choice) if mark and not Path(path).exists() else (path, "")


def read_weight_file(path: str) -> dict[str, Any]:
    """The contents of a weight file, on the CPU.

    What it is, its contents say, whatever it is called: torch files (.pth, .pt, .tar, .pyth, ...)
    and other pickles (.pkl) are read by an unpickler of our own, safetensors through their library.
    Nothing in a file is run, and it takes memory in proportion to its size. Not helped is a dict
    key of tuples in tuples, which Python can take any time to hash.

    Raises:
        OSError: no such file, a folder, or a file that may not be read.
        ValueError: no weight file, or one that asks for other things than weights; names them.
        ImportError: a file of safetensors, and no library of that name.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise IsADirectoryError(f"The weights {path!r} are a folder; name a file in it.")
    if not file.is_file():
        raise FileNotFoundError(f"No weight file at {path!r}.")
    with file.open("rb") as stream:
        head = stream.read(512)
    try:
        if head.startswith(_ZIP):
            data = _read_zip(file)
        elif _LEGACY_TORCH in head[:64]:
            data = _read_legacy(file.read_bytes())
        elif _is_safetensors(head, file.stat().st_size):
            data = _read_safetensors(file)
        else:
            data = _read_arrays(file.read_bytes(), head)
    except ImportError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"Refused the weight file {path!r}: {words}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path!r} holds a {type(data).__name__}, not a dict of weights.")
    return data


def describe_keys(data: dict[str, Any]) -> str:
    """Some keys of a file, and the classes of what is only stood in for."""
    strange = sorted({value.name for value in data.values() if isinstance(value, StandIn)})
    objects = f", with objects of {strange[:4]}" if strange else ""
    return f"its keys are {list(data)[:8]!r:.200}{objects}"


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


def _read_arrays(content: bytes, head: bytes) -> Any:
    try:  # twice its bytes, since old protocols make bytes of text, and arrays of these
        return read_pickle(io.BytesIO(content), 2 * len(content))
    except Exception:
        if words := what_it_is(head):
            raise ValueError(words) from None
        raise


def _read_zip(file: Path) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise ValueError("its end is missing; download or copy it again") from None
    storages: dict[str, torch.Tensor] = {}
    with archive:
        names = archive.namelist()
        if words := what_zip_it_is(names):
            raise ValueError(words)
        if sum(item.file_size for item in archive.infolist()) > file.stat().st_size:
            raise ValueError("it is compressed, which torch's files are not")
        folder = next(name for name in names if name.endswith("data.pkl"))[: -len("data.pkl")]
        if f"{folder}byteorder" in names:
            _check_byte_order(archive.read(f"{folder}byteorder").decode())

        def read_storage(key: str, size: int) -> torch.Tensor:
            if key not in storages:
                storages[key] = _bytes_of(archive.read(f"{folder}data/{key}"))
            if len(storages[key]) < size:
                raise ValueError(f"its part data/{key} is shorter than it says")
            return storages[key]

        content = archive.read(f"{folder}data.pkl")
        return read_pickle(io.BytesIO(content), 2 * len(content), read_storage)


def _read_legacy(content: bytes) -> Any:
    """Pickles: a number, a version, the machine, the object, its storages' keys; their bytes."""
    stream = io.BytesIO(content)
    storages: dict[str, torch.Tensor] = {}

    def read_storage(key: str, size: int) -> torch.Tensor:
        if key not in storages:
            if size + sum(len(each) for each in storages.values()) > len(content):
                raise ValueError("it announces more numbers than it has")
            storages[key] = torch.empty(size, dtype=torch.uint8)
        return storages[key]

    _, _, machine = (read_pickle(stream) for _ in range(3))
    _check_byte_order("little" if machine["little_endian"] else "big")
    data = read_pickle(stream, 2 * len(content), read_storage)
    for key in read_pickle(stream):
        stream.read(8)  # its number of elements, which is said in the pickle too
        storages[key].copy_(_bytes_of(stream.read(len(storages[key]))))
    return data


def _bytes_of(content: bytes) -> torch.Tensor:
    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _check_byte_order(order: str) -> None:
    if order != sys.byteorder:
        raise ValueError(f"it is of a {order}-endian machine; load and save it again there")


def tensors_of(data: dict[str, Any], kept: Container[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors by name of a loaded file, wherever they are in its dicts.

    A dict that means the trained network (`model`, `state_dict`, ...), or the only one, leaves no
    trace in the names, nor do wrappers (`module.` and the like). Other dicts stand before theirs.

    Args:
        kept: names that stay as they are, since a model has them.

    Raises:
        ValueError: a tensor whose numbers are not all there (sparse, expanded, on no device).
    """
    found = _search(data, _DEPTH, set())
    if strange := [name for name, tensor in found.items() if not _is_dense(tensor)]:
        raise ValueError(f"Not plain tensors of numbers in the weights: {strange[:8]}.")
    names = {name: name if name in kept else _unwrapped(name) for name in found}
    count = Counter(names.values())
    return {new if count[new] == 1 else old: found[old] for old, new in names.items()}


def _search(data: dict[Any, Any], depth: int, seen: set[int]) -> dict[str, torch.Tensor]:
    if id(data) in seen or not depth:
        return {}
    seen.add(id(data))
    items = {name: value for name, value in _contents(data).items() if isinstance(name, str)}
    found = {name: torch.as_tensor(v) for name, v in items.items() if isinstance(v, _KINDS)}
    inside = {n: _search(v, depth - 1, seen) for n, v in items.items() if isinstance(v, dict)}
    inside = {name: tensors for name, tensors in inside.items() if tensors}
    main: dict[str, torch.Tensor] = {}
    if not isinstance(data, StandIn):
        only = [] if found else list(inside)
        key = next((key for key in _MAIN if key in inside), only[0] if len(only) == 1 else "")
        main = inside.pop(key, {})
    for name, tensors in inside.items():
        found |= {f"{name}.{rest}": tensor for rest, tensor in tensors.items()}
    return found | main


def _contents(data: dict[Any, Any]) -> dict[Any, Any]:
    """The items of a dict; of a whole module, whose class has a stand-in, what it is made of."""
    attributes = vars(data) if isinstance(data, StandIn) else {}
    parts = (attributes.get(name) for name in ("_parameters", "_buffers", "_modules"))
    return {**data, **{n: v for part in parts if isinstance(part, dict) for n, v in part.items()}}


def _unwrapped(name: str) -> str:
    *parts, last = name.split(".")
    return ".".join([*(part for part in parts if part not in _WRAPPERS), last])


def _is_dense(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    # an expanded tensor can claim any number of elements
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
