"""The name under which Detectron2's main branch looks for cityscapesscripts."""

import importlib
import subprocess
import sys

import numpy
import pytest

from detco_d2.compat import _alias_cityscapesscripts
from detco_d2.data.cityscapes import mend_evaluator

ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"


@pytest.fixture(autouse=True)
def never_imported():
    def forget():
        for name in list(sys.modules):
            if name.partition(".")[0] == "deeplearning":
                del sys.modules[name]

    forget()
    _alias_cityscapesscripts()
    yield
    forget()


@pytest.mark.parametrize("module", ["helpers.labels", "evaluation.instance"])
def test_the_alias_gives_what_the_public_package_has(module):
    public, alias = [importlib.import_module(f"{n}.{module}") for n in ("cityscapesscripts", ALIAS)]
    assert alias.__file__ == public.__file__


def test_the_package_imports_cityscapesscripts_only_when_asked():
    code = (
        "import sys, detco_d2; print([m for m in sys.modules if m.startswith('cityscapesscripts')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_unknown_module_below_the_alias_is_not_found():
    for name in (f"{ALIAS}.no_such", "deeplearning.unknown"):
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(name)


def test_the_evaluation_is_mended_for_new_versions_of_numpy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(numpy, "in1d", raising=False)
    mend_evaluator()
    evaluation = importlib.import_module(f"{ALIAS}.evaluation.evalInstanceLevelSemanticLabeling")
    evaluation.writeDict2JSON({"pixels": numpy.int64(3)}, "matches.json")
    assert list(tmp_path.iterdir()) == []
    assert numpy.in1d(numpy.array([1, 2]), [2]).tolist() == [False, True]


def test_a_real_package_of_that_name_wins(monkeypatch, tmp_path):
    folder = tmp_path.joinpath(*ALIAS.split("."), "helpers")
    folder.mkdir(parents=True)
    (folder / "labels.py").write_text("labels = 'the real ones'")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("deeplearning")]:
        del sys.modules[name]
    _alias_cityscapesscripts()
    assert importlib.import_module(f"{ALIAS}.helpers.labels").labels == "the real ones"
