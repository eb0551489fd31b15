"""The figures of the house: how much there is to read. Prints what is over."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = Path(ROOT, "detco_d2")
# What turns an image into losses, and weights into a detector.
ROAD = (
    "pretrain_net.py",
    "train_net.py",
    "detco_d2/config.py",
    "detco_d2/config_checks.py",
    "detco_d2/families.py",
    "detco_d2/data/decode.py",
    "detco_d2/data/jigsaw.py",
    "detco_d2/data/mapper.py",
    "detco_d2/data/photometric.py",
    "detco_d2/data/stream.py",
    "detco_d2/data/views.py",
    "detco_d2/engine/pretrain.py",
    "detco_d2/engine/step.py",
    "detco_d2/engine/trainer.py",
    "detco_d2/engine/transfer.py",
    "detco_d2/modeling",
    "detco_d2/weights/backbone.py",
    "detco_d2/weights/checkpointer.py",
    "detco_d2/weights/input_spec.py",
    "detco_d2/weights/names.py",
)
LIST_OF_KEYS = PACKAGE / "config.py"


def python_files(*names: str) -> list[Path]:
    paths = [Path(ROOT, name) for name in names]
    return sorted(
        file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])
    )


def count_lines(files: Iterable[Path]) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


def imported_files(script: str) -> list[Path]:
    """Files of the project that importing an entry script loads."""
    code = (
        f"import sys, {script}; "
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), "
        "sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded = (Path(line) for line in run.stdout.splitlines())
    ours = (PACKAGE, Path(ROOT, f"{script}.py"))
    return [file for file in loaded if any(file.is_relative_to(place) for place in ours)]


SOURCES = python_files("detco_d2", "tools", "pretrain_net.py", "train_net.py")
# Also templates, tables and shell scripts.
OTHERS = [
    file
    for folder in ("detco_d2", "tools")
    for file in Path(ROOT, folder).rglob("*.*")
    if file.suffix not in (".py", ".pyc")
]


@pytest.mark.parametrize(
    ("what", "files", "most"),
    [
        # 8,900 and 3,200 for the house, and what labelled data by path, weights from anywhere,
        # the recipe, predict, check_gpu, the fill and the statistics have brought since
        ("package, tools and entry scripts", SOURCES + OTHERS, 11180),
        ("the road", python_files(*ROAD), 3310),
        ("documentation", [Path(ROOT, "README.md"), *Path(ROOT, "docs").glob("*.md")], 1300),
        ("README", [Path(ROOT, "README.md")], 110),
        ("tests", python_files("tests"), 11840),
    ],
)
def test_lines_stay_below(what: str, files: list[Path], most: int) -> None:
    assert count_lines(files) <= most, what


@pytest.mark.parametrize(("script", "most"), [("pretrain_net", 6000), ("train_net", 3965)])
def test_a_script_imports_at_most(script: str, most: int) -> None:
    files = imported_files(script)
    assert 20 < len(files)
    assert count_lines(files) <= most


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {str(file): count_lines([file]) for file in SOURCES if file != LIST_OF_KEYS}
    assert {file: length for file, length in lengths.items() if length > 300} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
        if node.name != "add_detco_config"
    }
    assert {name: length for name, length in found.items() if length > 60} == {}


def test_entry_scripts_have_at_most_65_lines() -> None:
    for script in ("pretrain_net.py", "train_net.py"):
        assert count_lines([Path(ROOT, script)]) <= 65, script


def test_imports_never_run_upward() -> None:
    """Floors: data, modeling and weights do not know each other; nothing below knows engine."""
    below = {
        "data": ("modeling", "engine", "weights", "probes", "reports"),
        "modeling": ("data", "engine", "weights", "probes", "reports"),
        "weights": ("data", "modeling", "engine", "probes", "reports"),
        "engine": ("reports",),
        "probes": ("engine", "reports"),
    }
    wrong = []
    for room, others in below.items():
        for file in python_files(f"detco_d2/{room}"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == 2:
                    module = (node.module or "").split(".")[0]
                    if module in others:
                        wrong.append(f"{file.relative_to(ROOT)} imports {node.module}")
    assert wrong == []
