#!/usr/bin/env python
"""Convert the backbone of a weight file into a file that Detectron2 loads into any detector.

python tools/convert_weights.py --input output/detco/model_final.pth --output detco_R_50.pth
python tools/convert_weights.py --input detco_200ep.pth --output detco_200ep.pkl INPUT.FORMAT RGB

Reads pretraining checkpoints of this project and ResNets under torchvision's, MoCo's,
OpenSelfSup's or Detectron2's names. The input settings travel with the weights: the file's own,
or torchvision's where it has none; KEY VALUE pairs at the end replace them.
"""

import argparse
import ast
import sys

from detco_d2.checkpoint.handover import check_complete, load_backbone, save_backbone
from detco_d2.checkpoint.input_spec import KEYS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE", help="ends in .pth or .pkl")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help=f"pairs of {', '.join(KEYS)}")
    args = parser.parse_args()
    pairs = dict(zip(args.opts[::2], args.opts[1::2]))
    if len(args.opts) % 2 or not set(pairs) <= set(KEYS):
        parser.error(f"expected pairs KEY VALUE with KEY of {list(KEYS)}, got {args.opts}")
    try:
        backbone, source, spec = load_backbone(args.input)
        for key, value in pairs.items():
            spec[key] = value if key == "INPUT.FORMAT" else ast.literal_eval(value)
        summary = check_complete(backbone, args.input)
        save_backbone(args.output, backbone, spec)
    except (ValueError, OSError) as error:
        sys.exit(f"convert_weights: {error}")
    print(f"Read {args.input}: {source}.\n{summary}")
    print(f"Input settings: {spec}\nWrote {args.output}.")


if __name__ == "__main__":
    main()
