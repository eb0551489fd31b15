"""Write a backbone for Detectron2, torchvision or timm, as .pth, .pkl or .safetensors."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from ..files import replacing
from .input_spec import TORCHVISION_SPEC, same
from .names import detectron2_to_torchvision

AUTHOR = "detco_d2"
SPEC_KEY = "input_spec"
SUFFIXES = (".pth", ".pkl", ".safetensors")


def save_backbone(path: str, backbone: dict[str, torch.Tensor], spec: dict[str, Any]) -> None:
    """Write a backbone as a file that Detectron2 loads by itself into any detector.

    Detectron2 by itself does not read .safetensors; this package does.

    Args:
        path: ends in .pth (a torch file), .pkl (a pickle of numpy arrays) or .safetensors.
        backbone: tensors under Detectron2 names.
        spec: its input settings.

    Raises:
        ValueError: see :func:`write_tensors`.
    """
    around = {"__author__": AUTHOR, "matching_heuristics": True, SPEC_KEY: spec}
    write_tensors(path, backbone, around)


def write_tensors(
    path: str, tensors: dict[str, torch.Tensor], around: dict[str, Any] | None = None
) -> None:
    """Write tensors by name, whole or not at all.

    Args:
        path: ends in .pth, .pkl or .safetensors.
        tensors: written under `model` if there is something around them, else at the top.
        around: what else the file says; in .safetensors as JSON among its metadata.

    Raises:
        ValueError: another ending, or tensors of a type that numpy has not (bfloat16) in a .pkl.
        ImportError: .safetensors, and no library of that name.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"The output {path!r} must end in one of {', '.join(SUFFIXES)}.")
    # copies: a view would bring its whole storage along
    own = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    with replacing(path) as part:
        if suffix == ".safetensors":
            _write_safetensors(part, own, around or {})
            return
        if suffix == ".pkl":
            content: dict[str, Any] = {name: _as_array(name, t) for name, t in own.items()}
        else:
            content = dict(own)
        data = {"model": content, **around} if around else content
        if suffix == ".pkl":
            part.write_bytes(pickle.dumps(data))
        else:
            torch.save(data, part)


def _as_array(name: str, tensor: torch.Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise ValueError(f"{name} is bfloat16, which a .pkl cannot hold; write .pth instead.")
    return tensor.numpy()


def _write_safetensors(
    path: Path, tensors: dict[str, torch.Tensor], around: dict[str, Any]
) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("To write .safetensors: pip install safetensors") from error
    said = {key: json.dumps(value) for key, value in around.items()}
    save_file(tensors, path, {"format": "pt", **said})  # the format is what timm asks for


def to_torchvision(
    backbone: dict[str, torch.Tensor], spec: dict[str, Any], fold_input: bool = False
) -> dict[str, torch.Tensor]:
    """A backbone under the names of torchvision and timm, for images as these read them.

    Args:
        backbone: tensors of a ResNet or ResNeXt under Detectron2 names.
        spec: its input settings.
        fold_input: let the first convolution take up other channels and standard deviations.

    Returns:
        all tensors of their models but the classifier's, with counters of batches at 0, so that
        they load with `strict=True` where `fc` is `nn.Identity()`.

    Raises:
        ValueError: a tensor that these models have not, or input settings that they have not.
    """
    named = {detectron2_to_torchvision(name): tensor for name, tensor in backbone.items()}
    if None in named:
        strange = [name for name in backbone if detectron2_to_torchvision(name) is None]
        raise ValueError(f"torchvision's ResNets have nothing like {strange[:5]}.")
    result = {str(name): tensor for name, tensor in named.items()}
    spec = {key: list(v) if isinstance(v, tuple) else v for key, v in spec.items()}
    wrong = {k: v for k, v in TORCHVISION_SPEC.items() if k in spec and not same(spec[k], v)}
    if wrong:
        seen = ", ".join(f"{key} {spec[key]}" for key in wrong)
        if "MODEL.RESNETS.STRIDE_IN_1X1" in wrong:
            raise ValueError(
                f"The weights were trained with {seen}, and the ResNets of torchvision and timm "
                "have their stride in the 3x3 convolution: their features would differ."
            )
        if not fold_input:
            raise ValueError(
                f"The weights were trained with {seen}, and the users of torchvision and timm give "
                f"{', '.join(f'{key} {value}' for key, value in wrong.items())}. --fold-input lets "
                "the first convolution take up the order of channels and their deviations."
            )
        result["conv1.weight"] = _folded(result["conv1.weight"], spec)
    for name in list(result):
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            result[counter] = torch.tensor(0)
    return result


def _folded(weight: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor:
    """The first convolution's weight, of shape (C, 3, 7, 7), for torchvision's input.

    With BGR the channels are turned around, to the last bit; another deviation scales them, within
    rounding. Another mean cannot be folded: the border of zeros would not stand for it any more.
    """
    full = {**TORCHVISION_SPEC, **spec}
    mean, std = (torch.tensor(full[f"MODEL.PIXEL_{key}"]).double() for key in ("MEAN", "STD"))
    if full["INPUT.FORMAT"] == "BGR":
        weight, mean, std = weight.flip(1), mean.flip(0), std.flip(0)
    if not same(mean.tolist(), TORCHVISION_SPEC["MODEL.PIXEL_MEAN"]):
        raise ValueError(
            f"MODEL.PIXEL_MEAN {full['MODEL.PIXEL_MEAN']} ({full['INPUT.FORMAT']}) is not "
            "torchvision's, and no convolution can take that up."
        )
    scale = torch.tensor(TORCHVISION_SPEC["MODEL.PIXEL_STD"]).double() / std
    if (scale - 1).abs().max() < 1e-4:
        return weight
    return (weight.double() * scale.view(1, 3, 1, 1)).to(weight.dtype)
