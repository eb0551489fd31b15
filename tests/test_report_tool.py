"""The command that writes the page, and the page in a real browser where there is one."""

import html
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import call, load_tool, tiny_config

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def tool():
    return load_tool("report")


@pytest.fixture
def run(tmp_path) -> Path:
    """An output folder as pretraining leaves it after three writes, cut off in the fourth."""
    folder = tmp_path / "output" / "pretrain"
    (folder / "views").mkdir(parents=True)
    (folder / "config.yaml").write_text(tiny_config("SOLVER.MAX_ITER", 100).dump())
    lines = [
        {"iteration": i, "lr": 0.1, "total_loss": 3.0 - i / 100, "time": 0.5}
        | {f"info_nce/gg_res{s}": 2.4 - i / 100 for s in (2, 3, 4, 5)}
        for i in (19, 39, 59)
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 79')
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = (250, 0, 0)
    Image.fromarray(picture).save(folder / "views" / "iteration_0000000.png")
    return folder


def test_the_page_is_written_beside_the_run(tool, run):
    call(tool, run)
    assert "60 of 100 iterations" in (run / "report.html").read_text()


def test_the_results_of_the_demo_around_a_run_are_found(tool, run):
    result = {"task": "scenes", "init": "DetCo", "seed": 0, "metrics": {"bbox/AP": 12.5}}
    content = {"command": "make demo", "runs": [result]}
    (run.parent / "results.json").write_text(json.dumps(content))
    call(tool, run, "--output", run.parent / "all.html")
    text = (run.parent / "all.html").read_text()
    assert "scenes, %" in text and "<td>12.5     </td>" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (["RUN/.."], "not the output folder of a run"),
        (["/nowhere"], "There is no '/nowhere/metrics.json'"),
        (["RUN", "--transfer", "/nowhere"], "no results.json in /nowhere"),
        (["RUN", "--output", "/nowhere/report.html"], "/nowhere"),
    ],
)
def test_mistakes_are_explained(tool, run, words, message):
    with pytest.raises(SystemExit, match=message):
        call(tool, *(word.replace("RUN", str(run)) for word in words))


def test_a_page_that_cannot_be_made_leaves_the_old_one(tool, run):
    (run / "report.html").write_text("old")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(SystemExit, match="config.yaml"):
        call(tool, run)
    assert (run / "report.html").read_text() == "old"
    assert [f.name for f in run.iterdir() if "report" in f.name] == ["report.html"]


def browse(page: Path, *words: str) -> subprocess.CompletedProcess:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={page.parent / 'profile'}", "--hide-scrollbars"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"]
    command = [BROWSER, *flags, *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")
def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(tool, run, tmp_path):
    call(tool, run)
    dump = browse(run / "report.html", "--dump-dom")
    assert "CONSOLE" not in dump.stderr  # a refused request or a broken page is logged there
    dom = html.unescape(dump.stdout)
    assert dom.count("image/svg+xml") == 3 and "chance, log(K+1)" in dom and "</html>" in dom
    shot = tmp_path / "shot.png"
    browse(run / "report.html", f"--screenshot={shot}", "--window-size=1000,3000")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (3000, 1000, 3)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1:].max(-1) < 60)
    assert is_red.sum() == pytest.approx(64 * 48, rel=0.1)  # the picture of the views
    assert len(np.unique(pixels @ [1, 256, 65536])) > 20  # lines and text
    page = run / "report.html"  # what a refused request would look like
    page.write_text(page.read_text().replace("</h1>", "</h1><img src='http://x.test/a.png'>"))
    assert "Content Security Policy" in browse(page, "--dump-dom").stderr
