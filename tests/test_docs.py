"""Every command and every link of README.md and docs/*.md works.

make test reads the commands: files, flags and configs are those there; make test-all runs them.

For whoever writes a page:

- A command stands in a ```bash fence, one command a line (or continued by a backslash), as a reader
  would type it in the repository; a command in running text in `single quotes`, and one that begins
  a line of a ```text fence (beside its output, "$ " before it or not), count as well. All are run.
  Trees of files and parts of commands stand in ```text fences or are indented.
- Python stands in a ```python fence and is run; later fences of a page go on where earlier ended.
- The commands of a page run in their order, in one folder that has the repository in it and an
  empty output/, through bash. So a page may use what it has made before.
- What a page does not make is planted: /my/photos (images without labels, cat.jpg among them),
  /data/voc and /data/bccd (VOC's layout), /data/mine (COCO's format: train.json, test.json, train/,
  test/), /data/flowers (folders of classes in train/ and val/), /data/datasets (as
  DETECTRON2_DATASETS names it: coco, VOC2007, VOC2012, cityscapes, imagenet), tar shards
  /data/train-{000000..000146}.tar, R-50.pkl, moco_v2_200ep.pth.tar, and runs that are done, if
  the page names a file in output/{mine,detco,photos} and has no `OUTPUT_DIR output/mine` itself.
- How a command is scaled down (no GPU, ResNet-18, three iterations) is in docs/rules.py; a
  command that no rule there covers fails.
- A link from a name, [name](../detco_d2/file.py), must lead to the file that defines it.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import warm
from .conftest import ROOT
from .docs.checking import PRELUDE, check, check_python, commands
from .docs.pages import PAGES, Block, anchors, blocks, defines, links, name_links, stray_commands
from .docs.planting import plant, plant_page
from .docs.published import FILE, published_tables, read_published

SHIMS = "python python3 torchrun pip make tensorboard sbatch srun scontrol wandb chromium".split()
PLAIN = "ls touch cat head tail mkdir cp ln sha256sum grep find wc bash".split()


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    plant(root)
    return root


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """A folder of programs that are run, each as its rule says, in forks of the warm server."""
    folder = tmp_path_factory.mktemp("programs")
    for name in SHIMS:
        start = ["-W", "ignore", "-m", "tests.docs.rules", name]
        text = warm.CLIENT.format(python=sys.executable, path=warm.server(), start=start)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in PLAIN:
        for place in ("/usr/bin", "/bin"):
            if os.path.exists(f"{place}/{name}") and not (folder / name).exists():
                (folder / name).symlink_to(f"{place}/{name}")
    return folder


def run_block(block, earlier, folder, programs, planted):
    """Run a block of a page as a reader would, with the planted places for the absolute ones."""

    def placed(text):
        text = re.sub(r"(?<![\w.}])/(my|data|shared)/", rf"{planted}/\1/", text)
        return text.replace("{000000..000146}", "{000000..000003}")

    if block.kind == "python":
        command = ["python", "-c", placed("\n".join([*earlier, block.text]))]
    else:
        command = ["bash", "-c", PRELUDE + placed(block.text)]
    environment = {
        "PATH": str(programs),
        "HOME": os.environ.get("HOME", "/"),
        "PLANTED": str(planted),
        "PYTHONPATH": os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]),
        "DETECTRON2_DATASETS": str(planted / "data/datasets"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONWARNINGS": "ignore",
        "SLURM_ARRAY_TASK_ID": "0",
        "MPLBACKEND": "Agg",
        "WANDB_MODE": "offline",
    }
    command[0] = str(programs / command[0])
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def run_page(page, folder, programs, planted):
    """Run all of a page; what failed, or ""."""
    text = page.read_text()
    plant_page(folder, planted, text)
    earlier: list[str] = []
    for block in blocks(text):
        done = run_block(block, earlier, folder, programs, planted)
        if done.returncode:
            return (
                f"{page.name}, line {block.line}, exit code {done.returncode}:\n{block.text}\n"
                f"{done.stderr[:1500]}\n...\n{done.stdout[-2000:]}\n{done.stderr[-2500:]}"
            )
        if block.kind == "python":
            earlier.append(block.text)
    return ""


@pytest.fixture(scope="session")
def runs(request, programs, planted, tmp_path_factory):
    """The selected pages, two at a time."""
    pool = ThreadPoolExecutor(2)
    yield {
        page: pool.submit(run_page, page, tmp_path_factory.mktemp(page.stem), programs, planted)
        for page in PAGES
        if any(f"runs[{page.stem}]" in item.name for item in request.session.items)
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_has_its_files_flags_and_config(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page.read_text()):
        if block.kind == "python":
            check_python(block.text)
        else:
            for words in commands(block.text, [*SHIMS, *PLAIN], tmp_path):
                check(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page, runs):
    failure = runs[page].result()
    assert not failure, failure


@pytest.mark.slow
@pytest.mark.parametrize("module, count", [("soak", "100"), ("saver", "5")])
def test_the_long_measurements_of_a_page_run_when_they_are_short(module, count, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", f"tests.faults.{module}", str(tmp_path), count]
    command += ["0"] if module == "saver" else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_is_where_no_test_finds_it(page):
    assert stray_commands(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    text, dead = page.read_text(), []
    for _, target in links(text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        file = page if not path else page.parent / path
        if not file.exists():
            dead.append(target)
        elif anchor and anchor not in anchors(file.read_text()):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_link_from_a_name_leads_to_the_file_that_defines_it(page):
    links = name_links(page.read_text())
    wrong = [pair for pair in links if not defines((page.parent / pair[1]).read_text(), pair[0])]
    assert wrong == []


def test_the_papers_figures_are_those_that_were_copied_from_it():
    zoo = Path(ROOT, "docs/MODEL_ZOO.md").read_text()
    assert published_tables() in zoo, "copy what `python -m tests.docs.published` prints"
    rows = [line for line in zoo.splitlines() if "*(paper)*" in line]
    cells = [cell for row in rows for cell in row.split("|")[2:-1] if cell.strip() != "-"]
    assert len(cells) == len(FILE.read_text().splitlines()) - 1
    figures = read_published()
    assert len(figures) == 21
    assert figures["voc/faster_rcnn_R_50_C4_24k"]["DetCo"] == {"bbox": [57.8, 82.6, 64.2]}
    low = figures["coco_low_data/mask_rcnn_R_50_FPN_1percent_12k"]["DetCo+AA"]
    assert low == {"bbox": [12.4, 23.5, 11.8], "segm": [12.1]}


def run_text(text, folder, programs, planted):
    return run_block(Block("bash", text, 1), [], folder, programs, planted)


@pytest.mark.parametrize(
    "text, message",
    [
        ("frobnicate x", "no rule for: frobnicate x"),
        ("python tools/nowhere.py", "no rule for python tools/nowhere.py"),
        ("pip install leftpad", "neither setup.py nor requirements/ knows ['leftpad']"),
        ("pip install -e '.[nothing]'", "setup.py has no extra nothing"),
        ("make nowhere", "nowhere"),
    ],
)
def test_a_command_without_a_rule_is_noticed(text, message, tmp_path):
    with pytest.raises((ValueError, AssertionError)) as error:
        for words in commands(text, SHIMS, tmp_path):
            check(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words, message",
    [
        ("pretrain_net.py --config-file configs/detco.yaml --frob", "--frob"),
        ("pretrain_net.py --config-file configs/none.yaml", "none.yaml"),
        ("pretrain_net.py --config-file configs/detco.yaml SOLVER.BASE_LRR 1.0", "BASE_LRR"),
        ("pretrain_net.py --config-file configs/detco.yaml MODEL.DETCO.MOMENTUM 2.0", "MOMENTUM"),
        ("tools/benchmark.py --suite quick --init random --frob", "--frob"),
        ("tools/benchmark.py --suite papper --init random", "papper"),
        ("-c 'from detco_d2.config import nothing'", "nothing"),
    ],
)
def test_a_wrong_flag_file_or_key_is_noticed(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, FileNotFoundError, ImportError, SystemExit)) as error:
        for command in commands(f"python {words}", SHIMS, tmp_path):
            check(command)
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.slow
def test_a_failure_before_a_pipe_is_noticed(tmp_path, programs, planted):
    text = "python -c 'import sys; sys.exit(3)' | cat\nls"
    assert run_text(text, tmp_path, programs, planted).returncode != 0


@pytest.mark.slow
def test_commands_see_the_shell_they_are_written_for(tmp_path, programs, planted):
    text = "for i in 1 2; do\nX=$i python -c 'import os; print(os.environ[\"X\"])' | cat\ndone"
    done = run_text(text, tmp_path, programs, planted)
    assert (done.returncode, done.stdout) == (0, "1\n2\n")


# Messages of other software, which no file of this project holds.
FOREIGN = (
    *("No object named", "'DetCo' ... 'META_ARCH'", "Non-existent config key", "AssertionError"),
    *("Only DistributedDataParallel", "SyncBatchNorm expected", "Address already in use"),
    *("KeyError: 'width'", "CUDA out of memory", "OSError: image file", "cannot identify image"),
    *(
        "DecompressionBombError",
        "DataLoader ",
        "No space left",
        "one of the variables",
        "unexpected EOF",
    ),
    *("PytorchStreamReader failed", "Weights only load failed", "WeightsUnpickler error"),
    *("No module named", "ModuleNotFoundError", "AttributeError", "RuntimeError: operator"),
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
    ours = [span.removeprefix("ImportError: ") for span in quoted if not span.startswith(FOREIGN)]
    wrong = [
        span
        for span in ours
        for part in re.split(r"'?\.\.\.'?|\*", span)
        if part.strip(" :") not in code
    ]
    assert wrong == []
    assert len(ours) > 3


def test_a_page_is_read_as_it_is_rendered():
    text = "# A `b` (c)\n## A b c\n\n`make test` and `x`\n\n```bash\nls\n```\n    pip x\n"
    assert [(block.text, block.line) for block in blocks(text)] == [("make test\n", 4), ("ls\n", 7)]
    assert stray_commands(text) == ["    pip x"]
    assert anchors(text) == {"a-b-c", "a-b-c-1"}
    assert name_links("[f](a.py) [g](b.md#x) [a/c.py](a/c.py)") == [("f", "a.py")]
    assert defines("x\n    def f(x):", "f") and not defines("    f(x)\n", "f")
