"""Read a weight file without running anything that is in it."""

import argparse
import io
import json
import pickle
import pickletools
import re
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
        FileNotFoundError: no such file.
        OSError: a folder, or a file that may not be read.
        ValueError: not a weight file, or one that asks for something else than weights, which is
            named.
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
            data = _read_arrays(file.read_bytes())
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
        message = _words(error)
        found = re.search(r"GLOBAL (\S+)", message)
        if found:  # torch leaves out "builtins."
            names = [found[1] if "." in found[1] else f"builtins.{found[1]}"]
        else:  # it stopped at an instruction before
            names = [name for name in _globals(pickles) if not name.startswith(_HARMLESS)]
        if names:
            raise ValueError(_asks_for(", ".join(names[:3]))) from None
        # its last words on the file itself
        message = message.split("WeightsUnpickler error:")[-1].replace(
            "Weights only load failed.", ""
        )
        message = re.split(r"In PyTorch 2\.6|Check the documentation", message)[0]
        raise ValueError(message.strip(" .")) from None


class _Settings(argparse.Namespace):
    """Stands for the command line in a checkpoint (timm's, DINO's); attributes, and no more."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = dict(state)


_HARMLESS = ("torch.", "collections.OrderedDict", "_codecs.encode")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _asks_for(name: str) -> str:
    return f"it asks for {name}, which no array of weights needs"


def _globals(pickles: bytes) -> list[str]:
    """What pickles, one behind the other, ask for by name; as far as they can be read."""
    found: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(pickles)
    try:
        while stream.tell() < len(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the tensors behind the pickles, or rubbish
        pass
    return found


def _read_arrays(content: bytes) -> Any:
    try:
        return _ArrayUnpickler(content).load()
    except (EOFError, KeyError) as error:  # it ends too early, or has an unknown instruction
        raise ValueError("it is neither a torch file nor a whole pickle") from error


# What pickles of arrays ask for, and the methods of _ArrayMaker that stand for it.
_KNOWN = {
    "numpy.ndarray": "",  # only ever named
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "empty",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "array",
    "collections.OrderedDict": "ordered_dict",
    "_codecs.encode": "encode",
    "builtins.bytes": "no_bytes",
    "__builtin__.bytes": "no_bytes",
}


_PythonUnpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_PythonUnpickler):
    """Makes text, numbers, containers, and arrays of numbers (Detectron2's and MoCo's .pkl files).

    numpy's own functions trust the pickle: with a forged dtype they take bytes for pointers. So
    others stand for them here; methods, since a pickle can set attributes of functions and classes.
    Python's unpickler in Python, since that in C makes room for as much as a pickle announces.
    """

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # as Python 2 wrote its bytes
        # twice, since old protocols make bytes of text, and arrays of these
        self._maker = _ArrayMaker(2 * len(content))

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        method = _KNOWN.get(asked.replace("numpy._core.", "numpy.core."))
        if method is None:
            raise ValueError(_asks_for(asked))
        return getattr(self._maker, method) if method else None

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # Python's makes it first, and then reads

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _ArrayMaker:
    """The functions that a pickle of arrays may call."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: bytes that may be made in all; a pickle can use one part of it many times.
        """
        self._left = limit

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("it makes more bytes of arrays than it has")

    def dtype(self, code: str, align: Any = False, copy: Any = False) -> "_NumberType":
        return _NumberType(code)

    def empty(self, kind: Any, shape: Any, code: Any) -> "_Array":
        array = np.empty(0).view(_Array)
        array.maker = self
        return array

    def scalar(self, dtype: Any, content: Any) -> Any:
        return self.array(content, dtype, ())[()]

    def array(self, content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        if not isinstance(dtype, _NumberType):
            raise ValueError("it has an array without a dtype")
        content = content.encode("latin1") if isinstance(content, str) else memoryview(content)
        self._spend(len(content))
        array = np.frombuffer(content, dtype.dtype) if len(content) else np.empty(0, dtype.dtype)
        return array.reshape(shape, order=order).astype(dtype.dtype.newbyteorder("="), order="C")

    def ordered_dict(self, items: Any = ()) -> "_Dict":
        self._spend(len(items))
        return _Dict(items)

    def encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(_asks_for(f"the encoding {encoding!r:.99}"))
        self._spend(len(text))
        return text.encode("latin1")

    def no_bytes(self) -> bytes:
        return b""


class _Dict(dict[Any, Any]):
    """An ordered dict whose attributes (torch's `_metadata`) are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumberType:
    """A dtype of plain numbers."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            raise ValueError(_asks_for(f"an array of dtype {code!r:.99}"))
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle makes empty, and then fills, once."""

    maker: _ArrayMaker | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if self.maker is None:
            raise ValueError("it fills an array twice")
        array = self.maker.array(content, dtype, shape, "F" if is_fortran else "C")
        self.maker = None
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))


def tensors_of(data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by name of a loaded file.

    Unwrapped from `model`, `state_dict`, `model_state` or VISSL's nest of dicts, without the
    `module.` of DDP.

    Raises:
        ValueError: a tensor whose numbers are not all there (sparse, expanded, on no device).
    """
    keys: tuple[str, ...] = ("model", "state_dict", "model_state", "model_state_dict")
    if "classy_state_dict" in data:
        keys = ("classy_state_dict", "base_model", "model", "trunk")
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
