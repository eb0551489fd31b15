"""Set-up: where Detectron2 comes from, and what is said when something does not fit."""

import subprocess
import sys

import pytest

from detco_d2 import compat

from .conftest import ROOT, load_tool


@pytest.fixture
def setup_env(monkeypatch):
    """The set-up script as a module, on a machine with no Detectron2 and no network."""
    module = load_tool("setup_env")
    monkeypatch.delenv("DETECTRON2_SOURCE", raising=False)
    monkeypatch.setattr(module, "existing_site_packages", lambda: [])
    return module


def test_upstream_is_taken_at_the_tested_commit_or_the_index_copy_if_there_is_no_answer(
    setup_env, monkeypatch
):
    def run(command, **kwargs):
        assert command[:2] == ["git", "ls-remote"]
        return subprocess.CompletedProcess(command, code, "", "fatal: no\nCould not resolve host")

    monkeypatch.setattr(setup_env.subprocess, "run", run)
    code, upstream = 0, f"git+{setup_env.UPSTREAM}@{setup_env.UPSTREAM_COMMIT}"
    assert setup_env.choose_source()[:2] == ("source", upstream)
    code = 128
    kind, location, why = setup_env.choose_source()
    assert (kind, location) == ("index", "detectron2-cdo==0.5")
    assert "Could not resolve host" in why


def test_a_named_source_and_an_existing_one_come_first(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env, "existing_site_packages", lambda: ["/x/site-packages"])
    assert setup_env.choose_source()[:2] == ("existing", "/x/site-packages")
    monkeypatch.setenv("DETECTRON2_SOURCE", str(tmp_path))
    assert setup_env.choose_source()[:2] == ("source", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_SOURCE", "https://example.org/detectron2")
    assert setup_env.choose_source()[1] == "git+https://example.org/detectron2"


def test_without_python_310_or_311_the_index_copy_is_refused_by_name(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, "python_version", lambda python: (3, 13))
    with pytest.raises(SystemExit, match="wants Python 3.10 or 3.11, and none was found"):
        setup_env.find_python_for_index_copy()
    monkeypatch.setattr(setup_env, "python_version", lambda python: (3, 10))
    assert setup_env.find_python_for_index_copy() == sys.executable


def test_setup_py_does_not_import_torch():
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("detco_d2")


def test_a_broken_pair_of_torch_and_torchvision_is_explained(monkeypatch):
    def fail(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(compat.importlib, "import_module", fail)
    with pytest.raises(ImportError, match="needs torchvision.*nms does not exist.*setup_env.py"):
        compat.check_installation()
