"""Weight files and configs of strangers: nothing in them runs, and an error says what it was."""

import argparse
import contextlib
import glob
import importlib
import io
import itertools
import json
import os
import pickle
import shutil
import string
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.config_files import flatten
from detco_d2.weights.arrays import KNOWN
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.checkpointer import BackboneCheckpointer
from detco_d2.weights.frozen import check_complete
from detco_d2.weights.input_spec import TORCHVISION_SPEC, InputSpec
from detco_d2.weights.reading import read_weight_file, tensors_of

from ..conftest import ROOT, tiny_config
from .harness import fuzz, mutations, noise

CONFIGS = os.path.join(ROOT, "configs")
DETCO = os.path.join(CONFIGS, "detco.yaml")
SHIPPED = sorted(glob.glob(os.path.join(CONFIGS, "**", "*.yaml"), recursive=True))


class Call:
    """Pickles as a call, which an unpickler would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __call__(self):  # only what can be called is pickled as a function
        raise NotImplementedError

    def __reduce__(self):
        return self.call


def payloads(marker):
    """By the name that the error must have: objects that make a file when they are loaded."""
    command = f"open({str(marker)!r}, 'w')"
    module = Call(importlib.import_module, "os")
    return {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, command),
        "exec": Call(exec, command),
        "getattr": Call(Call(getattr, module, "system"), f"touch {marker}"),  # first of a chain
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
    }


def as_torch(content, protocol, is_zip=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def as_legacy_torch(content, protocol):
    return as_torch(content, protocol, is_zip=False)


def check_refused(path, name):
    """Every way to read the file refuses it, by the name of what it asks for."""
    checkpointer = BackboneCheckpointer(torch.nn.Linear(1, 1), input_spec=InputSpec(tiny_config()))
    for read in (read_weight_file, read_backbone, checkpointer._load_file):
        with pytest.raises(ValueError, match=f"Refused the weight file .*{name}") as error:
            read(str(path))
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    "write, protocols",
    [(pickle.dumps, range(6)), (as_torch, range(6)), (as_legacy_torch, range(2, 6))],
)
def test_code_in_a_weight_file_does_not_run_and_is_named(tmp_path, write, protocols):
    """Whatever the file is called."""
    marker, endings = tmp_path / "marker", itertools.cycle([".pth", ".pkl", ".pyth", ""])
    for (name, payload), protocol in itertools.product(payloads(marker).items(), protocols):
        path = tmp_path / f"evil{next(endings)}"
        path.write_bytes(write({"model": {"a": payload}, "__author__": "x"}, protocol))
        check_refused(path, name)
        assert not marker.exists()


def test_the_command_line_in_a_checkpoint_brings_nothing_else_with_it(tmp_path):
    """argparse.Namespace may be named; what it holds, and what could run with it, may not."""
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    tensors = {"layer1.0.conv1.weight": torch.zeros(1)}
    for name, payload in payloads(marker).items():
        args = argparse.Namespace(lr=payload)
        path.write_bytes(as_torch({"state_dict": tensors, "args": args}, 2))
        check_refused(path, name)
    odd = argparse.Namespace(_get_kwargs=None, __setstate__=1)
    path.write_bytes(as_torch({"state_dict": tensors, "args": odd}, 2))
    assert vars(read_weight_file(str(path))["args"]) == {"_get_kwargs": None, "__setstate__": 1}
    assert not marker.exists()


@pytest.mark.parametrize(
    "header, message",
    [
        (b"{}" + b" " * 9, "holds no|has no|no backbone"),
        (b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}', "Refused"),
        (b'{"a":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}', "Refused"),
        (b'{"__metadata__":{"input_spec":"{"}}', "Refused"),
        (b'{"__metadata__":{"input_spec":"3","__author__":"\\"detco_d2\\""}}', "hold settings"),
        (b"{" * 10**5, "Refused"),
    ],
)
def test_forged_safetensors_are_refused(tmp_path, header, message):
    path = tmp_path / "forged.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=message):
        read_backbone(str(path))


def test_a_pickle_is_never_given_to_the_plain_unpickler(tmp_path, monkeypatch):
    path = tmp_path / "R-50.pkl"
    blobs = {"conv1_w": np.zeros((1, 1)), "res2_0_branch2a_w": np.zeros((1, 1))}
    path.write_bytes(pickle.dumps({"blobs": blobs | {"conv1_w_momentum": np.zeros(1)}}))
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("read unsafely"))
    cfg = tiny_config("INPUT.FORMAT", "BGR", "MODEL.RESNETS.STRIDE_IN_1X1", True)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]
    checkpointer = BackboneCheckpointer(torch.nn.Linear(1, 1), input_spec=InputSpec(cfg))
    found = checkpointer._load_file(str(path))
    assert found["__author__"] == "Caffe2" and found["matching_heuristics"]
    assert found["model"].keys() == blobs.keys()


def stored(*instructions):
    return b"\x80\x02" + b"".join(instructions) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


DTYPE = b"cnumpy\ndtype\n"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOATS = DTYPE + text(b"f8") + b"K\x00K\x01\x87R"


@pytest.mark.parametrize(
    "content, message",
    {
        # a dtype of pointers under the flags of one without: numpy would follow the file's bytes
        "pointers": (stored(DTYPE, text(b"V8"), b"K\x00K\x01\x87R"), "dtype 'V8'"),
        "objects": (stored(DTYPE, text(b"O8"), b"K\x00K\x01\x87R"), "dtype 'O8'"),
        "a call of ndarray": (stored(b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R"), "not callable"),
        "room for 2**31 objects": (stored(b"Nr\xff\xff\xff\x7f"), "holds a NoneType"),
        "a string of 2**62": (stored(b"\x8e" + struct.pack("<Q", 2**62)), "truncated|whole pickle"),
        "zeros of 2**40": (stored(b"\x96" + struct.pack("<Q", 2**40)), "truncated|whole pickle"),
        "another encoding": (
            stored(b"c_codecs\nencode\n", text(b"a" * 99), text(b"hex"), b"\x86R"),
            "encoding 'hex'",
        ),
        "an array that is longer than its bytes": (
            stored(EMPTY, b"(K\x01J\xff\xff\xff\x7f\x85", FLOATS, b"\x89U\x08" + b"a" * 8, b"tb"),
            "cannot reshape",
        ),
        "one string for many arrays": (
            stored(
                text(b"a" * 2000) + b"q\x000",
                (EMPTY + b"(K\x01K\xfa\x85" + FLOATS + b"\x89h\x00tb0") * 9,
                b"}",
            ),
            "more bytes of arrays",
        ),
        "no pickle": (b"<!DOCTYPE html><html>404</html>", "neither a torch file nor a whole"),
        "nothing": (b"", "neither a torch file nor a whole"),
        "half a pickle": (pickle.dumps({"a": 1})[:-1], "neither a torch file nor a whole"),
        "a number": (stored(b"K\x01"), "holds a int"),
    }.values(),
)
def test_a_forged_pickle_of_arrays_is_refused_by_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "forged.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weight_file(str(path))


def test_forged_flags_of_a_dtype_change_nothing(tmp_path):
    # flags of a list of objects
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    array = EMPTY + b"(K\x01K\x02\x85" + FLOATS + state + b"\x89U\x10" + b"\x00" * 16 + b"tb"
    path = tmp_path / "flags.pkl"
    path.write_bytes(stored(b"}U\x01a", array, b"s"))
    assert read_weight_file(str(path))["a"].tolist() == [0.0, 0.0]


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps(b"0" * 10**6))
    with pytest.raises(ValueError, match="it is compressed"):
        read_weight_file(str(path))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**12), torch.eye(2).to_sparse(), torch.zeros(2, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_without_their_numbers_are_named(tensor):
    with pytest.raises(ValueError, match="Not plain tensors of numbers .*'odd'"):
        tensors_of({"model": {"odd": tensor, "even": torch.zeros(1)}})


def test_folders_and_missing_files_are_said_to_be_so(tmp_path):
    with pytest.raises(IsADirectoryError, match="are a folder"):
        read_weight_file(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_weight_file(str(tmp_path / "nowhere.pth"))


TAGS = {
    "python/object/apply:os.system": "['touch {}']",
    "python/object/new:os.system": "['touch {}']",
    "python/object/apply:builtins.eval": '[\'open("{}", "w")\']',
    "python/name:os.system": "''",
    "python/module:os": "''",
}


@pytest.mark.parametrize("in_base", [False, True])
@pytest.mark.parametrize("tag", TAGS)
def test_code_in_a_config_does_not_run_and_is_named_with_its_line(tmp_path, tag, in_base):
    marker, leaf, base = (tmp_path / name for name in ("marker", "leaf.yaml", "base.yaml"))
    evil = f"VERSION: 2\nOUTPUT_DIR: !!{tag} {TAGS[tag].format(marker)}\n"
    leaf.write_text("_BASE_: base.yaml\n" if in_base else evil)
    base.write_text(evil)
    with pytest.raises(ValueError, match=tag) as error:
        load_config(str(leaf))
    assert (base.name if in_base else leaf.name) in str(error.value)
    assert "line 2" in str(error.value)
    assert not marker.exists()


def test_code_in_a_setting_is_text(tmp_path):
    marker = tmp_path / "marker"
    for value in (f"__import__('os').system('touch {marker}')", f"!!python/name:os.{marker}"):
        assert load_config(DETCO, ["OUTPUT_DIR", value]).OUTPUT_DIR == value
    assert not marker.exists()


BASES = {x: f"_BASE_: [{y}.yaml, {y}.yaml]" for x, y in zip("abcdefgh", "bcdefghi")}
ALIASES = [f"{y}: &{y} {{x: *{x}, y: *{x}}}\n" for x, y in zip("abcdefghij", "bcdefghijk")]


@pytest.mark.parametrize(
    "files, error, message",
    [
        ({"a": "_BASE_: a.yaml"}, ValueError, "its own _BASE_: .*a.yaml -> .*a.yaml"),
        ({"a": "_BASE_: b.yaml", "b": "_BASE_: [a.yaml]"}, ValueError, "b.yaml -> .*a.yaml"),
        ({"a": "_BASE_: none.yaml"}, FileNotFoundError, "none.yaml', the _BASE_ of '.*a.yaml'"),
        ({"a": "_BASE_: http://example.com/b.yaml"}, FileNotFoundError, "no local file"),
        ({"a": "_BASE_: {}"}, ValueError, "_BASE_ of .*; it must be a path"),
        ({**BASES, "i": "VERSION: 2"}, ValueError, "more than 50 _BASE_ files"),
        ({"a": f"x: &a [{'1, ' * 99}]\ny: [{'*a, ' * 99}]"}, ValueError, r"line 2: \*a is an al"),
        ({"a": "x: &a [*a]"}, ValueError, r"line 1: \*a is an alias"),
        ({"a": "".join(["a: &a {x: 1, y: 2}\n", *ALIASES])}, ValueError, "is an alias of too much"),
        ({"a": "SOLVER:\n  X: [1"}, ValueError, "a.yaml' is no plain YAML, line 2"),
        ({"a": ""}, ValueError, "holds a NoneType"),
        ({"a": "- 1"}, ValueError, "holds a list"),
        ({"a": "\x00\x01\x7f"}, ValueError, "a.yaml' is no plain YAML"),
        ({"a": "[" * 10**4}, ValueError, "recursion"),
        ({"a": pickle.dumps(torch.zeros(3)).decode("latin1")}, ValueError, "is no plain YAML"),
        ({"a.yaml/b": ""}, FileNotFoundError, "a.yaml' is no local file"),
        ({}, FileNotFoundError, "a.yaml' is no local file"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, files, error, message):
    for name, content in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="latin1")
    with pytest.raises(error, match=message):
        load_config(str(tmp_path / "a.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(CONFIGS, folder / "configs")
    return folder


typing = st.text(string.printable, max_size=8)  # what a keyboard can do


@pytest.fixture(scope="module")
def spec():
    return InputSpec(tiny_config())


def small_weights():
    names = ["conv1.weight", "layer1.0.conv1.weight", "bn1.running_var"]
    tensors = {name: torch.arange(4.0).reshape(1, 1, 2, 2) for name in names}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    content = {"model": arrays, "input_spec": TORCHVISION_SPEC}
    return [
        as_torch({"state_dict": tensors, "epoch": 3}, 2),
        as_legacy_torch({"model": tensors}, 2),
        *(pickle.dumps(content, protocol) for protocol in (0, 2, 5)),
        save_safetensors(tensors, {"input_spec": json.dumps(TORCHVISION_SPEC)}),
    ]


def read_in_every_way(content, folder):
    """Fails on all but success and ValueError."""
    path = folder / "weights"
    path.write_bytes(content)
    try:
        check_complete(read_backbone(str(path)))
    except ValueError as error:
        assert str(error)


@given(content=st.sampled_from(small_weights()).flatmap(lambda good: mutations(good, noise)))
@fuzz()
def test_damaged_weight_files_are_read_or_refused(folder, content):
    read_in_every_way(content, folder)


ASKED = [*KNOWN, "os.mkdir", "builtins.getattr", "builtins.bytearray"]
ASKED += ["torch._utils._rebuild_tensor_v2", "torch.FloatStorage"]


def pickled_values(marker):
    """Instructions that leave one object: nonsense, but such that an unpickler goes far."""
    strings = ["f4", "latin1", "V8", "O", "a", "conv1.weight", "model", str(marker)]
    pushed = [b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"h\x00", EMPTY, FLOATS]
    constant = st.one_of(
        st.sampled_from(pushed),
        st.sampled_from([text(value.encode()) for value in strings]),
        st.integers(0, 255).map(lambda value: bytes([ord("K"), value])),
        st.integers(-(2**31), 2**31 - 1).map(lambda value: b"J" + struct.pack("<i", value)),
        st.binary(max_size=20).map(lambda value: b"U" + bytes([len(value)]) + value),
        st.binary(min_size=1, max_size=5).map(lambda value: b"\x8a" + bytes([len(value)]) + value),
    )
    function = st.sampled_from(["c{}\n{}\n".format(*x.rsplit(".", 1)).encode() for x in ASKED])

    changes = st.sampled_from([b"q\x00", b"Q", b"2", b"0", b"\x94", b"\x93"])

    def compound(inner):
        many = st.lists(inner, max_size=4).map(b"".join)
        return st.one_of(
            many.map(lambda items: b"(" + items + b"t"),
            many.map(lambda items: b"](" + items + b"e"),
            st.lists(inner, max_size=3).map(lambda items: b"}(" + b"".join(items * 2) + b"u"),
            st.tuples(function, many).map(lambda call: call[0] + b"(" + call[1] + b"tR"),
            st.tuples(function, inner).map(lambda call: call[0] + call[1] + b"\x81"),
            st.tuples(inner, many).map(lambda pair: pair[0] + b"(" + pair[1] + b"tb"),
            st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1] + b"b"),
            st.tuples(inner, changes).map(b"".join),
        )

    return st.recursive(constant | function, compound, max_leaves=25)


@given(data=st.data())
@fuzz()
def test_pickles_of_random_instructions_are_read_or_refused(folder, data):
    marker = folder / "marker"
    body = data.draw(pickled_values(marker))
    if data.draw(st.booleans()):
        body = b"}" + text(b"model") + body + b"s"
    content = b"\x80\x02" + body + b"."
    if data.draw(st.booleans()):
        content = data.draw(mutations(content, noise))
    if data.draw(st.booleans()):  # the same in torch's archive
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/version", "3\n")
        content = buffer.getvalue()
    read_in_every_way(content, folder)
    assert not marker.exists()


tensors = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bool, torch.complex64, torch.int64]),
)
prefixes = st.sampled_from(["", "module.", "backbone.", "query_encoder.backbone.", "x."])
ends = ["conv1.weight", "layer1.0.conv1.weight", "res2.0.conv1.weight", "res2.0.conv3.weight"]
ends += ["res2.x.y", "conv1_w", "res2_0_branch2a_w", "weight", "bias"]
wrappers = ["model", "state_dict", "model_state", "blobs", "__author__", "matching_heuristics"]
wrappers += ["input_spec", *TORCHVISION_SPEC]
names = st.sampled_from(wrappers) | st.builds("".join, st.tuples(prefixes, st.sampled_from(ends)))
contents = st.recursive(
    tensors | st.integers() | st.text(max_size=3) | st.none() | st.booleans(),
    lambda inner: st.dictionaries(names | st.integers(), inner, max_size=6),
)


@given(content=st.dictionaries(names | st.integers(), contents, max_size=6), pickled=st.booleans())
@fuzz()
def test_weight_files_of_any_contents_load_or_are_refused(folder, spec, content, pickled):
    def arrays(value):
        if isinstance(value, dict):
            return {name: arrays(item) for name, item in value.items()}
        return value.numpy() if isinstance(value, torch.Tensor) else value

    data = pickle.dumps(arrays(content), 4) if pickled else as_torch(content, 2)
    read_in_every_way(data, folder)
    path = folder / ("any.pkl" if pickled else "any.pth")
    path.write_bytes(data)
    model = torch.nn.Linear(1, 1)
    checkpointer = BackboneCheckpointer(model, input_spec=spec)
    with contextlib.suppress(ValueError):
        checkpointer.load(str(path), checkpointables=[])
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def load_any(file, pairs=()):
    """Fails on all but success and the two documented errors."""
    try:
        check_detco_config(load_config(str(file), pairs))
    except (ValueError, FileNotFoundError) as error:
        assert str(error)


PAIRED = [key for key in dict(flatten(load_config(DETCO))) if "DETCO" in key]
PAIRED += ["MODEL.", "MODEL.DETCO", "MODEL.DEVICE.c", "MODEL.PIXEL_STD", "_BASE_", "VERSION"]
PAIRED += ["MODEL.RESNETS.OUT_FEATURES", "SOLVER.BASE_LR", "INPUT.FORMAT", "DATASETS.TRAIN"]
literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
values = literals | literals.map(repr) | st.text(max_size=12)


@given(pairs=st.lists(st.tuples(st.sampled_from(PAIRED) | st.text(max_size=8), values), max_size=3))
@fuzz()
def test_any_settings_are_taken_or_refused(pairs):
    load_any(DETCO, [word for pair in pairs for word in pair])


LINES = """
MODEL:
  DETCO:
    STAGES: [res2]
_BASE_: fuzz.yaml
  WEIGHTS: !!python/name:os.system x
VERSION: []
? [a]
&a *a
<<: *a
%YAML 9.9
---
a: 2020-99-99
!!binary =
{}}
""".splitlines()
documents = st.dictionaries(
    st.sampled_from(["MODEL", "INPUT", "SOLVER"]),
    st.dictionaries(
        st.sampled_from(["DETCO", "BASE_LR", "WEIGHTS", "RESNETS", "FORMAT", "DEPTH"]),
        literals | st.dictionaries(st.sampled_from(["STAGES", "MOMENTUM", "NORM"]), literals),
    ),
).map(lambda content: f"_BASE_: {ROOT}/configs/detco.yaml\n{yaml.safe_dump(content)}")
texts = st.lists(st.sampled_from(LINES) | typing | st.text(max_size=3), max_size=8).map("\n".join)


@given(st.sampled_from(SHIPPED), st.data())
@fuzz(2)
def test_any_text_is_a_config_or_refused(folder, shipped, data):
    """Also one that was damaged, beside the files that it names."""
    path = folder / os.path.relpath(os.path.dirname(shipped), ROOT) / "fuzz.yaml"
    damaged = mutations(Path(shipped).read_text(encoding="utf-8"), typing)
    content = data.draw(documents | texts | damaged)
    path.write_bytes(content.encode(errors="surrogatepass"))
    load_any(path)


def test_an_undamaged_file_of_each_kind_is_read(folder):
    """What the tests above start from is good, so that they do not fuzz a refusal."""
    for content in small_weights():
        (folder / "good").write_bytes(content)
        assert len(read_backbone(str(folder / "good")).tensors) == 3
    for file in SHIPPED:
        assert load_config(file).VERSION == 2
