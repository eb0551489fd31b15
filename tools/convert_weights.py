#!/usr/bin/env python
"""Convert the backbone of a weight file for Detectron2, torchvision or timm.

python tools/convert_weights.py --input output/mine/model_final.pth --output mine_R_50.pth
python tools/convert_weights.py --input mine_R_50.pth --to timm --output mine_R_50.safetensors
python tools/convert_weights.py --input moco_v2_800ep.pth.tar --output moco_v2.pkl INPUT.FORMAT RGB

Reads this project's checkpoints and the ResNets of Detectron2, torchvision, timm, MoCo,
OpenSelfSup, DenseCL, MMSelfSup, VISSL, lightly and solo-learn (docs/weights.md), whatever the file
is called; says what it took the file for and how much of the backbone it found, and ends with
exit code 1 if that is not all. The input settings travel with the weights: the file's own, or
torchvision's where it has none; KEY VALUE pairs at the end replace them.
"""

import argparse
import ast
import re
import sys
from typing import Any

from detco_d2.engine.launch import ends_with_one_line, tool_parser
from detco_d2.files import at_home
from detco_d2.weights.backbone import read_backbone
from detco_d2.weights.export import save_backbone, to_torchvision, write_tensors
from detco_d2.weights.frozen import check_complete

_NUMBER = r"\s*(0|[1-9]\d*)(\.\d*)?\s*"
_NUMBERS = (rf"\[{_NUMBER},{_NUMBER},{_NUMBER}\]", "three numbers, such as [1.0, 1.0, 1.0]")
_FORMS = {
    "INPUT.FORMAT": ("RGB|BGR", "RGB or BGR"),
    "MODEL.PIXEL_MEAN": _NUMBERS,
    "MODEL.PIXEL_STD": _NUMBERS,
    "MODEL.RESNETS.STRIDE_IN_1X1": ("True|False", "True or False"),
    "MODEL.RESNETS.DEPTH": (r"[1-9]\d*", "a number of layers"),
}


def parse() -> tuple[argparse.Namespace, dict[str, str]]:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, metavar="FILE")
    add("--output", required=True, metavar="FILE", help="ends in .pth, .pkl or .safetensors")
    whose = "whose names (default: detectron2); the last two are the same"
    add("--to", choices=("detectron2", "torchvision", "timm"), default="detectron2", help=whose)
    add("opts", nargs=argparse.REMAINDER, help=f"pairs of {', '.join(_FORMS)}")
    args = parser.parse_args(at_home(sys.argv[1:]))
    pairs = dict(zip(args.opts[::2], args.opts[1::2]))
    if len(args.opts) % 2 or not set(pairs) <= set(_FORMS):
        parser.error(f"expected pairs KEY VALUE with KEY of {list(_FORMS)}, got {args.opts}")
    return args, pairs


def setting(key: str, text: str) -> Any:
    """The value of an input setting.

    Raises:
        ValueError: another than that key may have.
    """
    form, wanted = _FORMS[key]
    if not re.fullmatch(form, text):
        raise ValueError(f"{key} is {text!r}; it must be {wanted}.")
    return text if key == "INPUT.FORMAT" else ast.literal_eval(text)


def convert(args: argparse.Namespace, pairs: dict[str, str]) -> None:
    backbone = read_backbone(args.input)
    print(f"Read {args.input}: {backbone.source}.")
    spec = backbone.spec | {key: setting(key, text) for key, text in pairs.items()}
    print(check_complete(backbone))
    origin = "torchvision's, as the file has none" if backbone.own_spec is None else "of the file"
    print(f"Input settings ({origin}{', and yours' if pairs else ''}): {spec}")
    if args.to == "detectron2":
        save_backbone(args.output, backbone.tensors, spec)
    else:
        write_tensors(args.output, to_torchvision(backbone.tensors, spec))
    print(f"Wrote {args.output} under the names of {args.to}.")


@ends_with_one_line("convert_weights")
def main() -> None:
    convert(*parse())


if __name__ == "__main__":
    main()
