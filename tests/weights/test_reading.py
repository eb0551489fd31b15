"""What numpy and torch write is read, whatever writes it and whatever it is called."""

import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from detco_d2.weights.reading import read_weight_file, tensors_of

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "doubles": np.arange(3.0) - 1,
    "halves": np.array([0.5, -0.5], dtype=np.float16),
    "integers": np.array([[1], [-(2**62)]]),
    "bytes": np.array([0, 255], dtype=np.uint8),
    "booleans": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "in Fortran's order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "a part": np.arange(10.0)[::2],
    "big-endian": np.arange(3, dtype=">f4"),
    "one number": np.array(7.0),
    "a scalar": np.float32(1.5),
    "none": np.zeros((0, 3)),
    "most of the file": np.random.default_rng(0).random(10**5),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_as_numpy_pickled_them(tmp_path, protocol):
    path = tmp_path / "arrays.pth"  # what it is called tells nothing
    content = {"model": OrderedDict(ARRAYS), "__author__": "x", "pair": (1, [2.0, None, b"\xff"])}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_weight_file(str(path))
    assert (found["__author__"], found["pair"]) == ("x", content["pair"])
    assert list(found["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        value = found["model"][name]
        assert value.dtype == array.dtype.newbyteorder("="), name
        assert value.shape == array.shape and np.array_equal(value, array), name
    assert tensors_of(found)["big-endian"].tolist() == [0, 1, 2]


def test_python_2_wrote_the_bytes_of_arrays_as_strings(tmp_path):
    numbers = struct.pack("<2f", 1.5, -2.0)
    content = (
        b"(dp0\nS'conv1_w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n"
        b"(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\n"
        b"Rp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS" + repr(numbers)[1:].encode() + b"\n"
        b"p15\ntp16\nbs."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(content)
    assert read_weight_file(str(path))["conv1_w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar", "a.pyth", "a.pkl", "a"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_files_are_known_by_their_contents(tmp_path, name, is_zip):
    path = str(tmp_path / name)
    state = {"a": torch.arange(3.0), "b": torch.ones(2).half()}
    torch.save({"state_dict": state, "epoch": 7}, path, _use_new_zipfile_serialization=is_zip)
    found = read_weight_file(path)
    assert found["epoch"] == 7
    assert all(torch.equal(found["state_dict"][key], state[key]) for key in state)


def test_a_read_pickle_holds_no_more_than_its_arrays(tmp_path):
    """Neither the file's bytes nor what read them: both would stay as long as the arrays."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(3.0)}))
    array = read_weight_file(str(path))["a"]
    assert array.maker is None and array.base is None
