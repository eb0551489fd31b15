"""What numpy and torch write is read, whatever writes it and whatever it is called."""

import argparse
import collections
import datetime
import enum
import functools
import io
import pathlib
import pickle
import struct
import tarfile
import types
import uuid
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from detco_d2.weights.reading import read_weight_file, split_choice, tensors_of

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


ONE = torch.ones(1)


@pytest.mark.parametrize(
    "content, names",
    [
        ({"module.a": ONE, "module.b": np.ones(1), "module.c": "no tensor"}, "a b"),
        ({"state_dict": {"model": {"a": ONE}}, "acc": 1.5}, "a"),
        ({"net": {"a": ONE}, "optimizer": {"state": {0: {"exp_avg": ONE}}}}, "a"),
        ({"student": {"module.a": ONE}, "teacher": {"a": ONE}}, "student.a teacher.a"),
        ({"model": {"a": ONE}, "ema": {"a": ONE}, "epoch": 3}, "ema.a a"),
        ({"classy_state_dict": {"base_model": {"model": {"trunk": {"a": ONE}}}}}, "a"),
        ({"m": {"x._orig_mod.module.y._fsdp_wrapped_module.module": ONE}}, "x.y.module"),
        ({"module.a": ONE, "a": ONE}, "module.a a"),  # they would be one
        ({"module": {"a": ONE}, "lr": [0.1]}, "a"),  # DeepSpeed
    ],
)
def test_tensors_are_found_in_any_dict_without_what_wrappers_add(content, names):
    assert list(tensors_of(content)) == names.split()


def test_a_name_that_the_model_has_stays_and_a_dict_in_itself_ends(tmp_path):
    content = {"module.a": ONE, "module.b": ONE}
    content["again"] = content
    assert list(tensors_of(content, kept={"module.b"})) == ["a", "module.b"]
    assert split_choice("a.pth#x.y") == ("a.pth", "x.y") and split_choice("a.pth") == ("a.pth", "")
    (tmp_path / "a#b").touch()
    assert split_choice(str(tmp_path / "a#b")) == (str(tmp_path / "a#b"), "")


class Colour(enum.Enum):
    RED = 1

    class Inner(dict):
        pass


class Settings(dict):
    """Of a project that a reader has not: pickled with items and attributes."""


def bookkeeping():
    settings = Settings(lr=0.1, path=pathlib.Path("/data"))
    settings.parent = settings
    return {
        "numpy": [np.float64(1.5), np.int64(3), np.True_, np.array(["a"]), np.datetime64(1, "D")],
        "time": [datetime.datetime(2024, 1, 1), datetime.timedelta(1), datetime.timezone.utc],
        "containers": [{1, 2}, frozenset("a"), collections.Counter("ab"), collections.deque([1])],
        "defaultdict": collections.defaultdict(list, {"a": [1]}),
        "objects": [settings, Colour.RED, types.SimpleNamespace(a=1), uuid.UUID(int=3), 1 + 2j],
        "keys": {Colour.RED: 1, pathlib.PurePosixPath("/a"): 2},
        "code": [functools.partial(Settings, a=1), torch.optim.SGD, torch.float16, torch.Size([2])],
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_kept_beside_the_tensors_is_passed_over(tmp_path, protocol, is_zip):
    path = str(tmp_path / "a.pth")
    content = {"model": {"a": torch.arange(6.0).view(2, 3).t()}, **bookkeeping()}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    found = read_weight_file(path)
    assert torch.equal(found["model"]["a"], content["model"]["a"])
    assert found["numpy"][:2] == [1.5, 3] and found["defaultdict"] == {"a": [1]}
    assert vars(found["args"])["lr"] == 0.1 and type(found["objects"][0]) is not Settings
    assert found["objects"][0].name.endswith("test_reading.Settings")


def test_tensors_of_all_kinds_come_back_as_torch_saved_them(tmp_path):
    base = torch.arange(12.0)
    state = {
        "view": base[3:9:2],
        "shared": base,
        "parameter": torch.nn.Parameter(base.half()),
        "one": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "small": torch.ones(2).to(torch.float8_e4m3fn),
    }
    state |= {str(k): torch.ones(3).to(k) for k in (torch.bfloat16, torch.bool, torch.uint16)}
    state["parameter"].note = "an attribute of its own"
    for is_zip in (True, False):
        torch.save(state, tmp_path / "a", _use_new_zipfile_serialization=is_zip)
        found = read_weight_file(str(tmp_path / "a"))
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            assert torch.equal(found[name].float(), tensor.float()), name
        assert found["view"].untyped_storage().data_ptr() == found["shared"].data_ptr()


def test_a_whole_module_gives_its_tensors_and_is_not_built(tmp_path):
    inner = torch.nn.Sequential(torch.nn.Linear(1, 1))
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), inner)
    torch.save({"epoch": 3, "net": module}, tmp_path / "a.pth")
    found = tensors_of(read_weight_file(str(tmp_path / "a.pth")))
    assert found.keys() == module.state_dict().keys()


def written(write, *content):
    buffer = io.BytesIO()
    write(*content, buffer)
    return buffer.getvalue()


def write_tar(buffer):
    with tarfile.open(None, "w", buffer) as file:
        file.addfile(tarfile.TarInfo("ckpt/a.pth"))


def write_zip(buffer):
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.pth", "x")


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda: b"", "it is empty, .*download"),
        (lambda: b"\n<!DOCTYPE html>\n<html>404", "it is a web page, .*the file itself"),
        (lambda: b"<?xml version='1.0'?><Error/>", "it is a web page"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs.*`git lfs pull`"),
        (lambda: written(write_tar), "a tar or other archive.*unpack"),
        (lambda: written(write_zip), "a zip archive of .'a.pth'.; unpack"),
        (lambda: b"\x1f\x8b\x08" + bytes(20), "a tar or other archive"),
        (
            lambda: written(torch.jit.save, torch.jit.script(torch.nn.Linear(1, 1))),
            "it is TorchScript.*state_dict",
        ),
        (lambda: b"\x89HDF\r\n\x1a\n", "Keras, ONNX or GGUF"),
        (lambda: b"Invalid username or password.", "it is text .'Invalid username"),
        (lambda: b'{"weight_map": {}}', "it is text"),
        (lambda: written(torch.save, {"a": ONE})[:-30], "its end is missing"),
    ],
)
def test_what_is_no_weight_file_is_called_by_its_name(tmp_path, content, words):
    path = tmp_path / "a.pth"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=f"Refused the weight file .*{words}"):
        read_weight_file(str(path))
