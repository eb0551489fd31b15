"""Who wrote a file is told by its keys; each layout gives the trained encoder, whole."""

import argparse

import pytest
import timm
import torch
import torchvision
from torch import nn

from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.frozen import check_complete

from ..conftest import R18
from .loading import FPN, detectron2, load_into, save


@pytest.fixture(scope="module")
def resnet18():
    """A ResNet-18's state with values of its own, without the classifier."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    return {n: torch.rand(t.shape) if t.dim() else t for n, t in state.items() if "fc" not in n}


def under(prefix, state, added=0.0):
    return {prefix + name: tensor + added for name, tensor in state.items()}


def children(state):
    """Names as in nn.Sequential(*list(resnet.children())[:-1])."""
    places = dict(zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), "014567"))
    split = {name: name.split(".", 1) for name in state}
    return {f"{places[first]}.{rest}": state[n] for n, (first, rest) in split.items()}


def linear(*names):
    return {f"{name}.{part}": torch.zeros(2) for name in names for part in ("weight", "bias")}


OF_TORCHVISION = "ResNet under the names of torchvision and timm"
OF_DETECTRON2 = "ResNet under the names of Detectron2"
MOMENTUM = "; its momentum copy ({}.*) is left"
FILES = {
    OF_TORCHVISION: lambda s: {**s, **linear("fc")},
    # OpenSelfSup, DenseCL, MMSelfSup: the trained one under two names
    f"{OF_TORCHVISION}, behind 'backbone.'{MOMENTUM.format('encoder_k')}": lambda s: {
        "meta": {"epoch": 200},
        "state_dict": under("backbone.", s)
        | under("encoder_q.0.", s)
        | under("encoder_k.0.", s, 1),
    },
    f"{OF_TORCHVISION}; written by 'DenseCL'": lambda s: {"state_dict": s, "author": "DenseCL"},
    f"{OF_DETECTRON2}; written by 'OpenSelfSup'": lambda s: {
        "model": detectron2(s) | linear("stem.fc.0", "stem.fc.2"),
        "__author__": "OpenSelfSup",
        "matching_heuristics": True,
    },
    # VISSL
    f"{OF_TORCHVISION}, behind '_feature_blocks.'": lambda s: {
        "phase_idx": 1,
        "classy_state_dict": {
            "base_model": {"model": {"trunk": under("_feature_blocks.", s), "heads": linear("0")}}
        },
    },
    # lightly's examples
    "ResNet under the names of an nn.Sequential of its children, behind 'backbone.'"
    + MOMENTUM.format("backbone_momentum"): lambda s: {
        "state_dict": under("backbone.", children(s)) | under("backbone_momentum.", children(s), 1),
    },
    # detectors with FPN, and of the C4 family
    f"{OF_DETECTRON2}, behind 'backbone.bottom_up.'": lambda s: {
        "model": under("backbone.bottom_up.", detectron2(s)) | linear("backbone.fpn_output2")
    },
    f"{OF_DETECTRON2}, behind 'backbone.'": lambda s: {
        "model": {
            ("roi_heads." if name.startswith("res5") else "backbone.") + name: tensor
            for name, tensor in detectron2(s).items()
        }
        | linear("roi_heads.res5.norm")
    },
}
# Where the trained encoder is, where its momentum copy, how both are called, and what is beside.
PAIRS = [
    ("module.encoder_q.", "module.encoder_k.", "encoder_q.", "encoder_k", "module.encoder_q.fc.0"),
    ("module.base_encoder.", "module.momentum_encoder.", "base_encoder.", "momentum_encoder"),
    ("module.encoder_q.0.", "module.encoder_k.0.", "encoder_q.0.", "encoder_k", "queue"),
    ("backbone.", "key_backbone.", "backbone.", "key_backbone", "projection_head.layers.0"),
    ("student_backbone.", "backbone.", "student_backbone.", ""),
    ("backbone.", "momentum_backbone.", "backbone.", "momentum_backbone", "classifier"),
]


def add_pair(trained, copy, name, copy_name, *beside):
    source = f"{OF_TORCHVISION}, behind '{name}'" + MOMENTUM.format(copy_name) * bool(copy_name)
    FILES[source] = lambda s: {
        "state_dict": under(trained, s) | under(copy, s, 1) | linear(*beside)
    }


for pair in PAIRS:  # MoCo v1 to v3, DenseCL, lightly, solo-learn
    add_pair(*pair)


@pytest.mark.parametrize("source", FILES)
def test_each_layout_is_told_by_its_keys_and_gives_the_trained_encoder(tmp_path, resnet18, source):
    backbone = read_backbone(save(tmp_path, FILES[source](resnet18), "weights"))
    assert backbone.source == source
    assert backbone.own_spec is None
    expected = detectron2(resnet18)
    assert backbone.tensors.keys() == expected.keys() and len(expected) == 100
    assert all(torch.equal(backbone.tensors[name], expected[name]) for name in expected)
    assert "\n100 of 100 backbone tensors of ResNet-18 matched" in check_complete(backbone)


def test_tensors_that_are_left_are_counted_by_the_beginning_of_their_names(tmp_path, resnet18):
    file = under("encoder_q.", resnet18 | linear("fc.0", "fc.2")) | under("encoder_k.", resnet18, 1)
    path = save(tmp_path, {"state_dict": file | {"queue": torch.zeros(2, 3)}}, "moco.pth.tar")
    assert read_backbone(path).unused == {"encoder_k.*": 100, "encoder_q.fc.*": 4, "queue": 1}


def test_a_training_checkpoint_of_timm_with_its_command_line_is_read(tmp_path, resnet18):
    args = argparse.Namespace(model="resnet18", lr=0.1, mean=(0.5, 0.5, 0.5))
    content = {"state_dict": resnet18, "args": args, "epoch": 1, "arch": "resnet18"}
    assert len(read_backbone(save(tmp_path, content, "checkpoint.pth.tar")).tensors) == 100


VARIANTS = {
    "seresnet18": "layer1.0.se.fc1.weight",
    "resnet18d": "stem.conv1.weight",
    "resnet50_gn": "",  # the same network with another norm, which Detectron2 has
    "resnet26": "res2.2.conv1.weight",
    "resnet200": "a ResNet that Detectron2 cannot build",
    "res2net50_26w_4s": "a ResNet that Detectron2 cannot build",
    "skresnet18": "no backbone of a known layout",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_of_timms_variants_those_are_refused_that_detectron2_has_not(tmp_path, name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=2)
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    path = save(tmp_path, {n: torch.zeros(()).repeat(shape) for n, shape in shapes.items()})
    if not VARIANTS[name]:
        assert "of ResNet-50 matched" in check_complete(read_backbone(path))
        return
    with pytest.raises(ValueError, match=VARIANTS[name]):
        check_complete(read_backbone(path))


def test_a_deeper_resnet_is_not_cut_to_the_depth_of_the_model(tmp_path):
    """All of a ResNet-18's tensors are in a ResNet-34, in their shapes."""
    path = save(tmp_path, torchvision.models.resnet34().state_dict())
    with pytest.raises(ValueError, match="80 tensors in the midst of its backbone.*res2.2.conv1"):
        load_into(FPN, path, *R18)


def test_a_sequential_of_other_layers_is_no_resnet(tmp_path):
    path = save(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict())
    with pytest.raises(ValueError, match="no backbone of a known layout"):
        read_backbone(path)


def encoder(value):
    return {"layer1.0.conv1.weight": torch.full((64, 64, 1, 1), value)}


@pytest.mark.parametrize("choice, value", [("#a", 1.0), ("#b.", 2.0), ("#.", 3.0), ("#t", 4.0)])
def test_of_several_encoders_one_must_be_named_unless_they_are_one(tmp_path, choice, value):
    parts = {"a": encoder(1.0), "b": {"net": encoder(2.0)}, "teacher": encoder(4.0)}
    path = save(tmp_path, {**encoder(3.0), **parts, "t": encoder(4.0)}, "two.pth")
    with pytest.raises(ValueError, match="two.pth': the file has 5 encoders.*: #., #a, #b, #t"):
        read_backbone(path)
    (tensor,) = read_backbone(path + choice).tensors.values()
    assert tensor.flatten()[0] == value
    with pytest.raises(ValueError, match="say which"):
        read_backbone(f"{path}#x")
    torch.save({"a": encoder(1.0), "b": encoder(1.0)}, path)
    assert read_backbone(path).source.endswith("behind 'a.'")


@pytest.mark.parametrize(
    "trained, copy",
    [
        ("student", "teacher"),
        ("online_backbone", "target_backbone"),
        ("model", "model_ema"),
        ("net", "ema_state_dict"),
        ("net", "shadow"),
        ("student_backbone", "backbone"),
        ("teacher", "epoch"),  # alone, it is what was meant
        ("state_dict_ema", "epoch"),
    ],
)
def test_the_trained_encoder_is_known_by_its_name(tmp_path, trained, copy):
    path = save(tmp_path, {copy: encoder(2.0) if copy != "epoch" else 3, trained: encoder(1.0)})
    (tensor,) = read_backbone(path).tensors.values()
    assert tensor.flatten()[0] == 1.0


def test_an_error_shows_the_keys_of_the_file_and_what_is_only_stood_in_for(tmp_path):
    path = save(tmp_path, {"epoch": 1, "lr": torch.optim.SGD, "w": torch.zeros(1)})
    said = r"first names: .'w'.*its keys are .'epoch', 'lr', 'w'., with objects of .'torch.optim"
    with pytest.raises(ValueError, match=said):
        read_backbone(path)
