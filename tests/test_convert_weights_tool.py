"""tools/convert_weights.py as a user calls it."""

import os
import re
import runpy
import sys
from typing import NamedTuple

import pytest
import torch
import torchvision

from .conftest import ROOT


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def convert(capsys, monkeypatch):
    """The tool with these arguments, run in this process, for the imports take seconds."""

    def run(*arguments):
        tool = os.path.join(ROOT, "tools", "convert_weights.py")
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print("" if isinstance(end.code, int) else end.code, file=sys.stderr)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_there_and_back_gives_the_same_bits_and_says_what_it_did(convert, resnet18, tmp_path):
    there = convert("--input", resnet18, "--output", tmp_path / "d2.safetensors")
    assert there.returncode == 0, there.stderr
    assert "ResNet under the names of torchvision and timm." in there.stdout
    assert "100 of 100 backbone tensors of ResNet-18 matched." in there.stdout
    assert "not of the backbone, left: fc.* (2)" in there.stdout
    assert "Input settings (torchvision's, as the file has none)" in there.stdout
    back = convert(
        "--input", tmp_path / "d2.safetensors", "--to", "timm", "--output", tmp_path / "b.pth"
    )
    assert back.returncode == 0, back.stderr
    assert "Input settings (of the file)" in back.stdout
    first, last = (torch.load(p, weights_only=True) for p in (resnet18, tmp_path / "b.pth"))
    assert first.keys() - last.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(last[name], first[name]) for name in last)


def test_less_than_the_whole_backbone_is_an_error_with_the_table(convert, resnet18, tmp_path):
    state = torch.load(resnet18, weights_only=True)
    del state["layer3.0.conv1.weight"]
    state["layer4.1.bn2.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "holes.pth")
    done = convert("--input", tmp_path / "holes.pth", "--output", tmp_path / "out.pth")
    assert done.returncode == 1
    assert re.search(r"all +100 +98 +1 +1 +98.0 %", done.stderr)
    assert "missing: res4.0.conv1.weight (256, 128, 3, 3)" in done.stderr
    assert "other shape: res5.1.conv2.norm.bias (3,), expected (512,)" in done.stderr
    assert "98 of the model's 100 backbone tensors" in done.stderr
    assert not (tmp_path / "out.pth").exists()


def test_bgr_weights_do_not_go_to_timm(convert, resnet18, tmp_path):
    output = tmp_path / "timm.pth"
    done = convert("--input", resnet18, "--to", "timm", "--output", output, "INPUT.FORMAT", "BGR")
    assert done.returncode == 1 and "trained with INPUT.FORMAT BGR" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    "opts, code, said",
    [
        (["INPUT.FORMAT"], 2, "expected pairs KEY VALUE"),
        (["MODEL.DEPTH", "18"], 2, "expected pairs KEY VALUE with KEY of .*MODEL.RESNETS.DEPTH"),
        (["MODEL.PIXEL_STD", "1,"], 1, "MODEL.PIXEL_STD is '1,'; it must be three numbers"),
        (["MODEL.PIXEL_MEAN", "[1, 2"], 1, r"MODEL.PIXEL_MEAN is '\[1, 2'; it must be three"),
        (["INPUT.FORMAT", "rgb"], 1, "INPUT.FORMAT is 'rgb'; it must be RGB or BGR"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "1"], 1, "it must be True or False"),
    ],
)
def test_settings_that_are_none_are_refused_by_their_key(
    convert, resnet18, tmp_path, opts, code, said
):
    done = convert("--input", resnet18, "--output", tmp_path / "out.pth", *opts)
    assert done.returncode == code
    assert re.search(said, done.stderr), done.stderr
    assert not (tmp_path / "out.pth").exists()
