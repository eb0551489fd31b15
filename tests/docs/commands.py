"""A command of the documentation: checked, or run as two CPU cores allow.

`python -m tests.docs.commands PROGRAM ...` runs one in its page's folder.
"""

import argparse
import ast
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch.distributed.run
from detectron2.config import CfgNode
from packaging.requirements import Requirement

from detco_d2 import config
from detco_d2.config_checks import check_detco_config

from ..conftest import NARROW, R18, ROOT, SETTINGS, TINY, load_tool

# What bash puts before the text of a page.
PRELUDE = "set -e -o pipefail\n"

# Stands in for every program: notes its words, and says nothing.
NOTE = """#!/bin/sh
printf '%s\\0' "$#" "${0##*/}" "$@" >> "$NOTES"
"""

# ResNet-18 stands in for ResNet-50. C4 detectors, which cannot use it, get a narrow ResNet-50 and
# no weights.
C4 = [*NARROW, "MODEL.WEIGHTS", ""]
PRETRAIN = TINY + R18 + SETTINGS["TINIER"] + SETTINGS["DOCS_PRETRAIN"]
TRAIN = SETTINGS["DOCS_TRAIN"]
# The values of options, wherever they stand.
OPTIONS = {"--num-gpus": "0", "--seeds": "1", "--batch": "2", "--shard": "0/9999"}
# What is added to the arguments of a script, before and after them.
BEFORE = {"tools/benchmark_speed.py": ["--repeats", "1"]}
AFTER = {
    "tools/check_gpu.py": ["--device", "cpu"],
    "tools/benchmark_speed.py": PRETRAIN,
    "tools/probe.py": ["--size", 48, "--stages", "res5", "--max-images", 40, "--workers", 0],
}
# Endurance measurements with less to endure.
COUNTS = {"tests.faults.soak": "100", "tests.faults.saver": "5"}


def commands(text: str, programs: Sequence[str], folder: Path) -> list[list[str]]:
    """The command lines that bash makes of a text, its loops, variables and pipes worked out.

    Raises:
        ValueError: a program that is not among those given.
    """
    for place in ("bin", ".venv/bin"):
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


def _parsed(script: str, words: Sequence[str]) -> argparse.Namespace:
    """What a script's own parser makes of a command line."""
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


def _script(words: Sequence[str]) -> tuple[str, list[str]]:
    """The script of this project that a command runs, and its arguments."""
    at = next((i for i, word in enumerate(words) if word.endswith((".py", ".sh"))), 0)
    if not Path(ROOT, words[at]).is_file():
        raise ValueError(f"no rule for {' '.join(words)}")
    name = "pretrain_net.py" if words[at] == "tools/slurm.sh" else words[at]
    return name, list(words[at + 1 :])


def _check_script(script: str, words: Sequence[str]) -> None:
    found = _parsed(script, words)
    files = [getattr(found, "config_file", "configs/detco.yaml")]
    if script == "tools/benchmark.py":
        files = load_tool("benchmark").find_configs(found.suite)
    for file in files:
        cfg = config.load_config(os.path.join(ROOT, file), getattr(found, "opts", []))
        if cfg.MODEL.META_ARCHITECTURE == "DetCo":
            check_detco_config(cfg, is_open=True)


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


def _check_pip(words: Sequence[str]) -> None:
    """Every requirement is one that setup.py, the set-up script or requirements/ names."""
    files = [*Path(ROOT, "requirements").iterdir(), Path(ROOT, "setup.py")]
    files.append(Path(ROOT, "tools/setup_env.py"))
    known = "\n".join(file.read_text() for file in files)
    for word in words[1:]:
        if word.startswith("git+"):
            names = word.removeprefix("git+").split("@")
        elif word.startswith("."):
            names = [f'"{extra}":' for extra in re.findall(r"\w+", word)]
        elif word.startswith("-"):
            continue
        else:
            names = [Requirement(word).name]
        for name in names:
            if name not in known:
                raise ValueError(f"nothing that is installed names {name}: pip {' '.join(words)}")


def check(words: Sequence[str]) -> None:
    """Raises an error if a command cannot work; what it reads and writes need not be there."""
    program, rest = words[0], list(words[1:])
    if program == "pip":
        _check_pip(rest)
    elif program == "make":
        real = shutil.which("make", path="/usr/bin:/bin:/usr/local/bin")  # not what runs this
        assert real, "make is not installed"
        done = subprocess.run([real, "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
    elif program == "tensorboard":
        assert rest[0] == "--logdir" and len(rest) == 2, rest
    elif rest[0] == "-c":
        check_python(rest[1])
    elif rest[0] == "-m":
        assert rest[1] in COUNTS and importlib.util.find_spec(rest[1]), rest
    else:
        if program == "torchrun":
            torch.distributed.run.get_args_parser().parse_args(rest)
        _check_script(*_script(words))


def _small(file: str) -> list[object]:
    """Settings with which a config is trained in seconds."""
    is_pretraining = config.load_config(file).MODEL.META_ARCHITECTURE == "DetCo"
    return PRETRAIN if is_pretraining else TRAIN + (C4 if "C4" in file else R18)


def _benchmark(words: list[str]) -> list[object]:
    """One cell is run of all that are planned; scenes are few."""
    split = words.index("--opts") if "--opts" in words else len(words)
    words, opts = words[:split], words[split + 1 :]
    is_paper = words[words.index("--suite") + 1] == "paper"  # its first cell is a C4 at random
    if not is_paper and "--data" not in words:
        scenes = Path(words[words.index("--output") + 1], "scenes")
        shutil.copytree(Path(os.environ["PLANTED"], "few_scenes"), scenes, dirs_exist_ok=True)
    shard = [] if "--shard" in words else ["--shard", OPTIONS["--shard"]]
    return [*words, *shard, "--opts", *opts, *TRAIN, *(C4 if is_paper else R18)]


def _scaled(script: str, words: list[str]) -> list[str]:
    """What is run instead of the arguments of one of the project's scripts."""
    for option in OPTIONS.keys() & words:
        words[words.index(option) + 1] = OPTIONS[option]
    words = [re.sub(r"scenes_([a-z]+)_\d+@", r"scenes_\1_8@", word) for word in words]
    if script == "tools/benchmark.py":
        found = _benchmark(words)
    elif script in ("pretrain_net.py", "train_net.py"):
        found = [*words, *_small(words[words.index("--config-file") + 1])]
    else:
        found = [*BEFORE.get(script, []), *words, *AFTER.get(script, [])]
    return [str(word) for word in found]


def _run_code(code: str) -> None:
    """Runs Python in which configs are loaded small."""
    load = config.load_config

    def load_small(file: str, settings: Sequence[Any] = ()) -> CfgNode:
        return load(file, [*settings, *map(str, small[file])])

    small = {file: _small(file) for file in re.findall(r"configs/[\w/.]+\.yaml", code)}
    config.load_config = load_small
    exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})


def run(words: list[str]) -> None:
    """Runs one command; the installation, the demo and the tests are only checked."""
    if words[0] in ("pip", "make", "tensorboard"):
        return check(words)
    if words[1] == "-c":
        return _run_code(words[2])
    if words[1] == "-m":
        sys.argv = [words[2], words[3], COUNTS[words[2]], *words[5:]]
        return runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    script, arguments = _script(words)
    sys.argv = [script, *_scaled(script, arguments)]
    if words[0] == "sbatch":
        sys.argv[1:1] = ["--num-gpus", "0"]
    print("runs:", words[0], *sys.argv, file=sys.stderr, flush=True)
    if words[0] == "torchrun":
        return torch.distributed.run.main(["--standalone", "--nproc-per-node", "2", *sys.argv])
    sys.path[0:0] = [ROOT, os.path.join(ROOT, os.path.dirname(script))]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    run(sys.argv[1:])
