"""What a page's commands would run, without running it: files, flags, configs and names."""

import argparse
import ast
import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch.distributed.run

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config

from ..conftest import ROOT, load_tool
from . import rules

# Stands in for every program: notes its words, and says nothing.
NOTE = """#!/bin/sh
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$NOTES"
"""
PRELUDE = """set -e -o pipefail
command_not_found_handle() { echo "no rule for: $*" >&2; return 127; }
"""


def commands(text: str, programs: Sequence[str], folder: Path) -> list[list[str]]:
    """The command lines that bash makes of a text, its loops, variables and pipes worked out.

    Raises:
        ValueError: a program that is not among those given.
    """
    for place in ("bin", ".venv/bin", "output/mine"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / ".venv/bin/activate").touch()
    for name in programs:
        (folder / "bin" / name).write_text(NOTE)
        (folder / "bin" / name).chmod(0o755)
    notes = folder / "notes"
    notes.write_bytes(b"")
    environment = {"PATH": str(folder / "bin"), "NOTES": str(notes), "SLURM_ARRAY_TASK_ID": "0"}
    words = ["/bin/bash", "-c", PRELUDE + text]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr)
    noted, found = notes.read_text().split("\0")[:-1], []
    while noted:
        end = int(noted[0]) + 2
        found.append(noted[1:end])
        noted = noted[end:]
    return found


class _Parsed(Exception):
    """Ends a script when its arguments have been read."""


def arguments(script: str, words: Sequence[str]) -> argparse.Namespace:
    """What a script's own parser makes of a command line.

    Raises:
        ValueError: no such script.
        SystemExit: a flag that the script does not know.
    """
    if not Path(ROOT, script).is_file():
        raise ValueError(f"no rule for python {script}")
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: Any) -> NoReturn:
        raise _Parsed(parse_args(self, *args))

    path = [os.path.join(ROOT, os.path.dirname(script)), *sys.path]
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.multiple(sys, argv=[script, *words], path=path),
    ):
        try:
            runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
        except _Parsed as parsed:
            return parsed.args[0]
    raise ValueError(f"{script} reads no arguments")


def _check_script(script: str, words: Sequence[str]) -> None:
    found = arguments(script, words)
    files = [getattr(found, "config_file", "configs/detco.yaml")]
    if script == "tools/benchmark.py":
        files = load_tool("benchmark").find_configs(found.suite)
    for file in files:
        cfg = load_config(os.path.join(ROOT, file), getattr(found, "opts", []))
        if cfg.MODEL.META_ARCHITECTURE == "DetCo":
            check_detco_config(cfg)


def check_python(code: str) -> None:
    """Every name that code imports is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


def check(words: Sequence[str]) -> None:
    """A command as `commands` gives it; what it writes need not be there."""
    program, rest = words[0], list(words[1:])
    if program in ("python", "python3"):
        if rest[0] == "-c":
            check_python(rest[1])
        elif rest[:2] == ["-m", "pip"]:
            rules.check_pip(rest[2:])
        elif rest[0] == "-m":
            if rest[1] != "venv":
                rules.module(rest[1:])
        elif os.path.basename(rest[0]) != "lazyconfig_train_net.py":
            _check_script(rest[0], rest[1:])
    elif program == "torchrun":
        found = torch.distributed.run.get_args_parser().parse_args(rest)
        _check_script(found.training_script, found.training_script_args)
    elif program == "sbatch":
        script = next(i for i, word in enumerate(rest) if word.endswith(".sh"))
        assert Path(ROOT, rest[script]).is_file(), rest
        _check_script("pretrain_net.py", rest[script + 1 :])
    elif program == "pip":
        rules.check_pip(rest)
    elif program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
