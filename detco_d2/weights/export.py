"""Write a backbone for Detectron2, torchvision or timm, as .pth, .pkl or .safetensors."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from ..files import replacing
from .backbone import AUTHOR
from .input_spec import SPEC_KEY, TORCHVISION_SPEC, differing
from .names import TO_TORCHVISION

_SUFFIXES = (".pth", ".pkl", ".safetensors")


def save_backbone(path: str, tensors: dict[str, torch.Tensor], spec: dict[str, Any]) -> None:
    """Write a backbone under Detectron2 names, with its input settings, see :func:`write_tensors`.

    Detectron2 by itself loads a .pth and a .pkl into any detector, this package .safetensors too.
    """
    around = {"__author__": AUTHOR, "matching_heuristics": True, SPEC_KEY: spec}
    write_tensors(path, tensors, around)


def write_tensors(
    path: str, tensors: dict[str, torch.Tensor], around: dict[str, Any] | None = None
) -> None:
    """Write tensors by name, whole or not at all.

    Args:
        path: ends in .pth (a torch file), .pkl (a pickle of numpy arrays) or .safetensors.
        tensors: written under `model` if there is something around them, else at the top.
        around: what else the file says; in .safetensors as JSON among its metadata.

    Raises:
        ValueError: another ending, or tensors of a type that numpy has not (bfloat16) in a .pkl.
        ImportError: .safetensors, and no library of that name.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(f"The output {path!r} must end in one of {', '.join(_SUFFIXES)}.")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder for the output {path!r}; make it first.")
    # copies: a view would bring its whole storage along
    dense = torch.contiguous_format
    content: dict[str, Any] = {n: t.clone(memory_format=dense) for n, t in tensors.items()}
    if suffix == ".pkl":
        if coarse := [name for name in content if content[name].dtype == torch.bfloat16]:
            raise ValueError(f"{coarse[0]} is bfloat16, which a .pkl cannot hold; write .pth.")
        content = {name: tensor.numpy() for name, tensor in content.items()}
    data = {"model": content, **around} if around else content
    with replacing(path) as part:
        if suffix == ".safetensors":
            _write_safetensors(part, content, around or {})
        elif suffix == ".pkl":
            part.write_bytes(pickle.dumps(data))
        else:
            torch.save(data, part)


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("To write .safetensors: pip install safetensors") from error
    words = {key: json.dumps(value) for key, value in said.items()}
    save_file(tensors, path, {"format": "pt", **words})  # the format is what timm asks for


def to_torchvision(
    tensors: dict[str, torch.Tensor], spec: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a ResNet or ResNeXt as torchvision and timm name them.

    Returns:
        all tensors of their models but the classifier's, with counters of batches at 0, so that
        they load with `strict=True` where `fc` is `nn.Identity()`.

    Raises:
        ValueError: a tensor that these models have not, or input settings that they have not.
    """
    if wrong := differing(spec, TORCHVISION_SPEC):
        seen = ", ".join(f"{key} {value}" for key, value in wrong.items())
        wanted = ", ".join(f"{key} {TORCHVISION_SPEC[key]}" for key in wrong)
        raise ValueError(
            f"The weights were trained with {seen}, and the models of torchvision and timm have "
            f"{wanted}: their features would differ. Names of Detectron2 keep the settings."
        )
    if strange := [name for name in tensors if name not in TO_TORCHVISION]:
        raise ValueError(f"torchvision's ResNets have nothing like {strange[:5]}.")
    result = {TO_TORCHVISION[name]: tensor for name, tensor in tensors.items()}
    norms = [name.removesuffix("running_var") for name in result if name.endswith("running_var")]
    if not norms:
        raise ValueError(
            "torchvision's and timm's ResNets have batch norm, and these weights have none. Names "
            "of Detectron2 keep them."
        )
    return result | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
