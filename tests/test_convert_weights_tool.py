"""tools/convert_weights.py as a user calls it."""

import re

import pytest
import torch
import torchvision

from .conftest import call, load_tool


@pytest.fixture
def convert(capsys):
    """What the tool ends with, as its exit code and what it printed; run in this process."""

    def run(*arguments):
        code = 0
        try:
            call(load_tool("convert_weights"), *arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code)
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_there_and_back_gives_the_same_bits_and_says_what_it_did(convert, resnet18, tmp_path):
    code, said = convert("--input", resnet18, "--output", tmp_path / "d2.safetensors")
    assert code == 0, said
    assert "ResNet under the names of torchvision and timm." in said
    assert "100 of 100 backbone tensors of ResNet-18 matched." in said
    assert "not of the backbone, left: fc.* (2)" in said
    assert "Input settings (torchvision's, as the file has none)" in said
    words = ["--to", "timm", "--output", tmp_path / "b.pth"]
    code, said = convert("--input", tmp_path / "d2.safetensors", *words)
    assert code == 0, said
    assert "Input settings (of the file)" in said
    first, last = (torch.load(p, weights_only=True) for p in (resnet18, tmp_path / "b.pth"))
    assert first.keys() - last.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(last[name], first[name]) for name in last)


def test_less_than_the_whole_backbone_is_an_error_with_the_table(convert, resnet18, tmp_path):
    state = torch.load(resnet18, weights_only=True)
    del state["layer3.0.conv1.weight"]
    state["layer4.1.bn2.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "holes.pth")
    code, said = convert("--input", tmp_path / "holes.pth", "--output", tmp_path / "out.pth")
    assert code == 1
    assert re.search(r"all +100 +98 +1 +1 +98.0 %", said)
    assert "missing: res4.0.conv1.weight (256, 128, 3, 3)" in said
    assert "other shape: res5.1.conv2.norm.bias (3,), expected (512,)" in said
    assert "98 of the model's 100 backbone tensors" in said
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "opts, code, said",
    [
        (["INPUT.FORMAT"], 2, "expected pairs KEY VALUE"),
        (["MODEL.DEPTH", "18"], 2, "expected pairs KEY VALUE with KEY of .*MODEL.RESNETS.DEPTH"),
        (["MODEL.PIXEL_STD", "1,"], 1, "MODEL.PIXEL_STD is '1,'; it must be three numbers"),
        (["MODEL.PIXEL_MEAN", "[1, 2"], 1, r"MODEL.PIXEL_MEAN is '\[1, 2'; it must be three"),
        (["INPUT.FORMAT", "rgb"], 1, "INPUT.FORMAT is 'rgb'; it must be RGB or BGR"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "1"], 1, "it must be True or False"),
        (["INPUT.FORMAT", "BGR"], 1, "trained with INPUT.FORMAT BGR, and .*timm have"),
    ],
)
def test_settings_that_are_none_are_refused_by_key(convert, resnet18, tmp_path, opts, code, said):
    output = tmp_path / "out.pth"
    found = convert("--input", resnet18, "--to", "timm", "--output", output, *opts)
    assert found[0] == code
    assert re.search(said, found[1]), found[1]
    assert not output.exists()
