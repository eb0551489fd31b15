"""Read pickles of weights, torch's and numpy's, without calling anything that they name."""

import io
import pickle
import re
import struct
import sys
import types
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

# A storage's bytes by its key, of at least so many.
ReadStorage = Callable[[str, int], torch.Tensor]


def read_pickle(stream: io.BytesIO, limit: int = 0, read_storage: ReadStorage | None = None) -> Any:
    """What the next pickle of a stream holds: containers, tensors, and arrays of numbers.

    What else it asks for is a :class:`StandIn`, if that is a setting beside the weights.

    Args:
        limit: bytes of arrays that it may make, since a pickle can use one part of it many times.
        read_storage: gives what a torch file keeps beside its pickle.

    Raises:
        ValueError: it asks for something of Python itself that is no setting, which is named; or
            it is no whole pickle.
    """
    try:
        return _Unpickler(stream, limit, read_storage).load()
    except (EOFError, KeyError) as error:  # it ends too early, or has an unknown instruction
        raise ValueError("it is neither a torch file nor a whole pickle") from error


class StandIn(dict[Any, Any]):
    """Takes the place of an object, or of its class: a name, items and attributes, and no more."""

    __slots__ = ("__dict__", "name")
    __hash__ = object.__hash__  # type: ignore[assignment]  # as a key
    __eq__ = object.__eq__

    def __init__(self, name: str) -> None:
        self.name = name

    def append(self, *items: Any) -> None:
        """Leave out what a list or set of that kind would hold."""

    add = extend = append


# What pickles of weights ask for, and the methods of _Unpickler that stand for it.
KNOWN = {
    "numpy.ndarray": "",  # only ever named
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "empty",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "array",
    "collections.OrderedDict": "ordered_dict",
    "collections.defaultdict": "no_items",
    "_codecs.encode": "encode",
    "builtins.bytes": "no_bytes",
    "torch.Size": "size",
    "torch._utils._rebuild_tensor": "tensor",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_tensor_v3": "tensor",
    "torch._utils._rebuild_parameter": "parameter",
    "torch._utils._rebuild_parameter_with_state": "parameter",
    "torch._tensor._rebuild_from_type_v2": "tensor_of_type",
}
_NUMBERS = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
for _storage in torch._storage_classes:
    if isinstance(_kind := getattr(_storage, "_dtype", None), torch.dtype):
        _NUMBERS[f"torch.{_storage.__name__}"] = _kind
_NUMBERS["torch.storage.UntypedStorage"] = torch.uint8
# Of Python's own library only what settings are made of is passed over; no setting names the rest.
_SETTINGS = re.compile(
    r"(argparse|array|collections|copyreg|datetime|decimal|enum|fractions|logging|pathlib|typing|"
    r"uuid|zoneinfo)\..*|types\.SimpleNamespace|functools\.partial|re\._compile|builtins\.(bool|"
    r"bytearray|complex|dict|float|frozenset|getattr|int|list|long|object|range|set|slice|str|"
    r"tuple|type|unicode)"
)


def asks_for(name: str) -> str:
    return f"it asks for {name}, which no array of weights needs"


class _Storage(NamedTuple):
    """The bytes, of shape (N,), of tensors, and the numbers that they are."""

    kind: torch.dtype
    content: torch.Tensor


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Makes text, numbers, containers, tensors, and arrays of numbers.

    The functions of numpy and torch trust the pickle: with a forged dtype numpy takes bytes for
    pointers. So others stand for them here: methods, since a pickle can set attributes of
    functions and classes. Python's unpickler in Python, since that in C makes room for as much as
    a pickle announces.
    """

    dispatch = dict(_PythonUnpickler.dispatch)

    def __init__(self, stream: io.BytesIO, limit: int, read_storage: ReadStorage | None) -> None:
        super().__init__(stream, encoding="latin1")  # as Python 2 wrote its bytes
        self._left = limit
        self._read_storage = read_storage
        self._after = ""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{IMPORT_MAPPING.get(module, module)}.{name}"  # of Python 2's names
        method = KNOWN.get(asked.replace("numpy._core.", "numpy.core."))
        if method is not None:
            return getattr(self, method) if method else None
        if asked in _NUMBERS:
            return _NUMBERS[asked]
        if asked.startswith("torch._utils._rebuild") or (
            asked.partition(".")[0] in sys.stdlib_module_names and not _SETTINGS.fullmatch(asked)
        ):
            raise ValueError(asks_for(f"{self._after}{asked}"))
        if asked == "builtins.getattr":  # of nested classes, but also of an attack
            self._after = f"{asked}, "
        return StandIn(asked)

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count, *_ = pid
        if self._read_storage is None or not isinstance(kind, torch.dtype):
            return StandIn("a storage")
        return _Storage(kind, self._read_storage(str(key), count * kind.itemsize))

    def _make(self, function: Any, arguments: Any) -> Any:
        """The only call of what a pickle names: of a method of this class, or of nothing."""
        if isinstance(function, StandIn):
            return StandIn(function.name)
        if not isinstance(function, types.MethodType):
            raise ValueError(f"it calls a {type(function).__name__}, which is not callable")
        return function(*arguments)

    def _instantiate(self, function: Any, arguments: Any) -> None:
        self.append(self._make(function, arguments))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._make(function, arguments))

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state, found = self.stack.pop(), self.stack[-1]
        if isinstance(found, (_Array, _NumberType)):
            found.__setstate__(state)
        elif isinstance(found, StandIn) and isinstance(state, dict):
            found.__dict__ = dict(state)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # Python's makes it first, and then reads

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("it makes more bytes of arrays than it has")

    def tensor(self, storage: Any, offset: int, shape: Any, stride: Any, *others: Any) -> Any:
        if not isinstance(storage, _Storage):
            raise ValueError("it has a tensor without its numbers")
        kind = next((each for each in others if isinstance(each, torch.dtype)), storage.kind)
        return storage.content.view(kind).as_strided(shape, stride, offset)

    def parameter(self, tensor: Any, *others: Any) -> Any:
        return tensor

    def tensor_of_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        return self._make(function, arguments)

    def size(self, items: Any) -> tuple[Any, ...]:
        return tuple(items)

    def dtype(self, code: str, align: Any = False, copy: Any = False) -> Any:
        is_text = isinstance(code, str) and re.fullmatch(r"[SUmM]\d+", code)
        return StandIn("numpy.dtype") if is_text else _NumberType(code)

    def empty(self, kind: Any, shape: Any, code: Any) -> "_Array":
        array = np.empty(0).view(_Array)
        array.maker = self
        return array

    def scalar(self, dtype: Any, content: Any) -> Any:
        return dtype if isinstance(dtype, StandIn) else self.array(content, dtype, ())[()]

    def array(self, content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        if not isinstance(dtype, _NumberType):
            raise ValueError("it has an array without a dtype")
        content = content.encode("latin1") if isinstance(content, str) else memoryview(content)
        self._spend(len(content))
        array = np.frombuffer(content, dtype.dtype) if len(content) else np.empty(0, dtype.dtype)
        return array.reshape(shape, order=order).astype(dtype.dtype.newbyteorder("="), order="C")

    def ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
        self._spend(len(items))
        return dict(items)

    def no_items(self, *arguments: Any) -> dict[Any, Any]:
        return {}

    def encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(asks_for(f"the encoding {encoding!r:.99}"))
        self._spend(len(text))
        return text.encode("latin1")

    def no_bytes(self) -> bytes:
        return b""


class _NumberType:
    """A dtype of plain numbers."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            raise ValueError(asks_for(f"an array of dtype {code!r:.99}"))
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle makes empty, and then fills, once; one of text stays empty."""

    maker: _Unpickler | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        if self.maker is None:
            raise ValueError("it fills an array twice")
        maker, self.maker = self.maker, None
        if isinstance(dtype, StandIn):
            return
        array = maker.array(content, dtype, shape, "F" if is_fortran else "C")
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))
