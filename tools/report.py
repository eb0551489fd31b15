#!/usr/bin/env python
"""One page about a run: curves, pictures, probes, transfer, config, versions, command lines.

python tools/report.py output/mine
python tools/report.py output/mine --transfer output/benchmark --transfer output/demo

Reads the output folder of pretrain_net.py or train_net.py, which may still be running, and writes
report.html into it: a single file that needs no network. What is not there is named with the
command that makes it. --transfer names folders of tools/benchmark.py or tools/demo.py; without it,
the report.json of the demo that the run belongs to is taken.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from detectron2.config import get_cfg
from detectron2.utils.logger import setup_logger

from detco_d2.config import add_detco_config
from detco_d2.config_files import flatten
from detco_d2.engine.record import command_line
from detco_d2.files import replacing
from detco_d2.reports.page import page
from detco_d2.reports.run_folder import Run, read_config, read_scalars, read_warnings

logger = logging.getLogger("detco_d2.report")


def changed_keys(values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(default, value) of the keys that differ from Detectron2's and this project's defaults."""
    cfg = get_cfg()
    add_detco_config(cfg)
    defaults = dict(flatten(cfg))
    return {
        key: (defaults.get(key, "no such key now"), value)
        for key, value in values.items()
        if key not in defaults or defaults[key] != value
    }


def read_run(folder: Path, transfer: list[Path]) -> Run:
    """
    Raises:
        FileNotFoundError, ValueError: no metrics.json or config.yaml, or a broken one.
    """
    curves, config = read_scalars(folder / "metrics.json"), read_config(folder / "config.yaml")
    demo = folder.absolute().parent
    return Run(
        folder=folder,
        curves=curves,
        config=config,
        changed=changed_keys(config[1]),
        warnings=read_warnings(folder / "log.txt"),
        transfer=transfer or ([demo] if (demo / "report.json").is_file() else []),
        command=command_line(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="output folder of a run")
    add(
        "--transfer", type=Path, action="append", default=[], help="folder with results; repeatable"
    )
    add("--output", type=Path, help="the file to write; default: report.html in the folder")
    args = parser.parse_args()
    setup_logger(name="detco_d2", abbrev_name="detco")
    output = args.output or args.run / "report.html"
    try:
        for folder in args.transfer:
            if not any((folder / name).is_file() for name in ("results.json", "report.json")):
                raise FileNotFoundError(f"--transfer: no results.json or report.json in {folder}")
        text = page(read_run(args.run, args.transfer))
        with replacing(output) as file:  # surrogates, which JSON can hold, are no text
            file.write_bytes(text.encode("utf-8", "replace"))
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")
    logger.info("%s: %.1f MB", output, output.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
