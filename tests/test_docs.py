"""Every command and every link of README.md and docs/*.md works.

make test reads the commands: files, flags and configs are those there; make test-all runs them.

For whoever writes a page:

- A command stands in a ```bash fence, as a reader would type it in the repository, or in running
  text in `single quotes`. Python stands in a ```python fence; later ones go on where earlier ended.
- The commands of a page run in their order, in one folder that has the repository in it and an
  empty output/, through bash. So a page may use what it has made before.
- What a page does not make is planted (docs/planting.py): /my/photos (images without labels,
  cat.jpg among them), /data/voc and /data/bccd (VOC's layout), /data/mine (COCO's format),
  /data/flowers (folders of classes), /data/datasets (as DETECTRON2_DATASETS names it), tar shards
  /data/train-{000000..000146}.tar, R-50.pkl, moco_v2_200ep.pth.tar, and finished runs in
  output/mine and output/detco, unless the page has `OUTPUT_DIR` with that name.
- docs/commands.py says how a command is scaled down. One that it does not know fails.
- A link from a name, [name](../detco_d2/file.py), must lead to the file that defines it.
"""

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import warm
from .conftest import ROOT
from .docs.commands import PRELUDE, check, check_python, commands
from .docs.pages import PAGES, anchors, blocks, defines, links, name_links, stray_commands
from .docs.planting import plant, plant_page

PROGRAMS = ("python", "torchrun", "pip", "make", "tensorboard", "sbatch")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(scope="session")
def planted(tmp_path_factory, layouts):
    root = tmp_path_factory.mktemp("planted")
    plant(root, layouts)
    return root


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder of programs that are run scaled down, in forks of the warm server."""
    folder = tmp_path_factory.mktemp("programs")
    for name in PROGRAMS:
        start = ["-W", "ignore", "-m", "tests.docs.commands", name]
        text = warm.CLIENT.format(python=sys.executable, path=warm.server(), start=start)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_block(block, earlier, folder, programs, planted):
    """Run a block of a page as a reader would, with the planted places for the absolute ones."""

    def placed(text):
        text = re.sub(r"(?<![\w.}])/(my|data|shared)/", rf"{planted}/\1/", text)
        return text.replace("{000000..000146}", "{000000..000003}")

    command = ["/bin/bash", "-c", PRELUDE + placed(block.text)]
    if block.kind == "python":
        command = [programs / "python", "-c", placed("\n".join([*earlier, block.text]))]
    environment = {
        **os.environ,
        "PATH": f"{programs}:/usr/bin:/bin",
        "PLANTED": str(planted),
        "PYTHONPATH": ROOT,
        "DETECTRON2_DATASETS": str(planted / "data/datasets"),
        "OMP_NUM_THREADS": "1",
        "SLURM_ARRAY_TASK_ID": "0",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@every_page
def test_every_command_of_a_page_has_its_files_flags_and_config(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page.read_text()):
        if block.kind == "python":
            check_python(block.text)
        else:
            for words in commands(block.text, PROGRAMS, tmp_path):
                check(words)


@pytest.mark.slow
@every_page
def test_every_command_of_a_page_runs(page, tmp_path, programs, planted):
    text, earlier = page.read_text(), []
    plant_page(tmp_path, planted, text)
    for block in blocks(text):
        done = run_block(block, earlier, tmp_path, programs, planted)
        assert done.returncode == 0, (
            f"{page.name}, line {block.line}:\n{block.text}\n"
            f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        if block.kind == "python":
            earlier.append(block.text)


@every_page
def test_no_command_is_where_no_test_finds_it(page):
    assert stray_commands(page.read_text()) == []


@every_page
def test_every_link_leads_somewhere(page):
    text, dead = page.read_text(), []
    for _, target in links(text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            dead.append(target)
    assert dead == []


@every_page
def test_a_link_from_a_name_leads_to_the_file_that_defines_it(page):
    links = name_links(page.read_text())
    wrong = [pair for pair in links if not defines((page.parent / pair[1]).read_text(), pair[0])]
    assert wrong == []


def test_the_papers_figures_are_those_that_were_copied_from_it():
    zoo = Path(ROOT, "docs/MODEL_ZOO.md").read_text()
    rows = re.findall(r"^\| (.*) \*\(paper\)\* \| (.*) \|$", zoo, re.M)
    shown = Counter(
        (method, cell) for method, cells in rows for cell in cells.split(" | ") if cell != "-"
    )
    with open(Path(ROOT, "tests/docs/published.csv"), newline="") as file:
        figures = [(row["method"], row["percent"]) for row in csv.DictReader(file)]
    published = Counter((method, percent.replace("/", " / ")) for method, percent in figures)
    assert shown == published


@pytest.mark.parametrize(
    "text, message",
    [
        ("frobnicate x", "frobnicate"),
        ("python -c 'import os' | false | cat", ""),
        ("python tools/nowhere.py", "no rule for python tools/nowhere.py"),
        ("pip install leftpad", "leftpad"),
        ("pip install -e '.[nothing]'", "nothing"),
        ("make nowhere", "nowhere"),
        ("python pretrain_net.py --config-file configs/detco.yaml --frob", "--frob"),
        ("python pretrain_net.py --config-file configs/none.yaml", "none.yaml"),
        ("sbatch tools/slurm.sh --config-file configs/detco.yaml SOLVER.BASE_LRR 1.", "BASE_LRR"),
        ("torchrun pretrain_net.py --config-file configs/detco.yaml SOLVER.MOMENTUM 2", "MOMENTUM"),
        ("torchrun --frob pretrain_net.py", "--frob"),
        ("python tools/benchmark.py --suite papper --init random", "papper"),
        ("python -c 'from detco_d2.config import nothing'", "nothing"),
    ],
)
def test_a_command_that_cannot_work_is_noticed(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, FileNotFoundError, ImportError, SystemExit)) as error:
        for words in commands(text, PROGRAMS, tmp_path):
            check(words)
    assert message in str(error.value) + capsys.readouterr().err


def test_loops_and_variables_are_worked_out(tmp_path):
    text = "for i in 1 2; do\npython $i $SLURM_ARRAY_TASK_ID\ndone"
    assert commands(text, PROGRAMS, tmp_path) == [["python", "1", "0"], ["python", "2", "0"]]


# Messages of other software, which no file of this project holds.
FOREIGN = re.compile(
    "No object named|'DetCo' ... 'META_ARCH'|Non-existent config key|Address already in use"
    "|CUDA out of memory|OSError: image file|cannot identify image|DecompressionBombError"
    "|DataLoader |No space left|Weights only load failed|WeightsUnpickler error|No module named"
    "|ModuleNotFoundError|AttributeError|RuntimeError: operator"
)


@pytest.mark.parametrize("page", ["TROUBLESHOOTING.md", "INSTALL.md"])
def test_messages_are_quoted_as_the_code_has_them(page):
    code = "".join(file.read_text() for file in sorted(Path(ROOT).glob("detco_d2/**/*.py")))
    code += "".join(Path(ROOT, file).read_text() for file in ("setup.py", "tools/setup_env.py"))
    code = re.sub(r"[\"']\s*\n?\s*f?[\"']", "", code)  # strings that continue on the next line
    text = Path(ROOT, "docs", page).read_text()
    if page == "INSTALL.md":
        text = text[text.index("## When installation fails") :]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    quoted = [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    ours = [span.removeprefix("ImportError: ") for span in quoted if not FOREIGN.match(span)]
    parts = [part.strip(" :") for span in ours for part in re.split(r"'?\.\.\.'?|\*", span)]
    assert [part for part in parts if part not in code] == []
    assert len(ours) > 3


def test_a_page_is_read_as_it_is_rendered():
    text = "# A `b` (c)\n\n`make test` and `x`\n\n```bash\nls\n```\n    pip x\n"
    assert [(block.text, block.line) for block in blocks(text)] == [("make test\n", 3), ("ls\n", 6)]
    assert stray_commands(text) == ["    pip x"]
    assert anchors(text) == {"a-b-c"}
    assert name_links("[f](a.py) [g](b.md#x) [a/c.py](a/c.py)") == [("f", "a.py")]
    assert defines("x\n    def f(x):", "f") and not defines("    f(x)\n", "f")
