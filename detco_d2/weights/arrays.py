"""Read a pickle of arrays (Detectron2's and MoCo's .pkl files) without numpy's trust in it."""

import io
import pickle
import re
import struct
from typing import Any

import numpy as np

from .refusals import asks_for


def read_arrays(content: bytes) -> Any:
    """What a pickle of containers and arrays of numbers holds.

    Raises:
        ValueError: it asks for something else, which is named, or is no whole pickle.
    """
    try:
        return _ArrayUnpickler(content).load()
    except (EOFError, KeyError) as error:  # it ends too early, or has an unknown instruction
        raise ValueError("it is neither a torch file nor a whole pickle") from error


# What pickles of arrays ask for, and the methods of _ArrayUnpickler that stand for it.
KNOWN = {
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
    others stand for them here: methods, since a pickle can set attributes of functions and classes.
    Python's unpickler in Python, since that in C makes room for as much as a pickle announces.
    """

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # as Python 2 wrote its bytes
        # Bytes that may be made in all, since a pickle can use one part of it many times. Twice its
        # own, since old protocols make bytes of text, and arrays of these.
        self._left = 2 * len(content)

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        method = KNOWN.get(asked.replace("numpy._core.", "numpy.core."))
        if method is None:
            raise ValueError(asks_for(asked))
        return getattr(self, method) if method else None

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # Python's makes it first, and then reads

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

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
            raise ValueError(asks_for(f"the encoding {encoding!r:.99}"))
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
            raise ValueError(asks_for(f"an array of dtype {code!r:.99}"))
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle makes empty, and then fills, once."""

    maker: _ArrayUnpickler | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if self.maker is None:
            raise ValueError("it fills an array twice")
        array = self.maker.array(content, dtype, shape, "F" if is_fortran else "C")
        self.maker = None
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))
