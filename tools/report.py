#!/usr/bin/env python
"""One page about a run: results, curves, pictures, probes, config, versions, command lines.

python tools/report.py output/mine
python tools/report.py output/mine --transfer output/benchmark --transfer output/compare

Reads the output folder of pretrain_net.py or train_net.py, which may still be running, and writes
report.html into it: a single file that needs no network. What is not there is named with the
command that makes it. --transfer names folders of tools/benchmark.py.
"""

import logging
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from detco_d2.engine.launch import ends_with_one_line, tool_parser
from detco_d2.files import at_home, replacing
from detco_d2.reports.page import page
from detco_d2.reports.run_folder import read_run

logger = logging.getLogger("detco_d2.report")


@ends_with_one_line("report")
def main() -> None:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, help="output folder of a run")
    add("--transfer", type=Path, action="append", default=[], help="folder of tools/benchmark.py")
    add("--output", type=Path, help="the file to write; default: report.html in the folder")
    args = parser.parse_args(at_home(sys.argv[1:]))
    setup_logger(name="detco_d2", abbrev_name="detco")
    output = args.output or args.run / "report.html"
    text = page(read_run(args.run, args.transfer))
    with replacing(output) as file:  # surrogates, which JSON can hold, are no text
        file.write_bytes(text.encode("utf-8", "replace"))
    logger.info("%s: %.1f MB", output, output.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
