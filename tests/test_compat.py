"""The name under which Detectron2's main branch looks for cityscapesscripts."""

import importlib
import subprocess
import sys

import numpy
import pytest

from detco_d2.compat import mend_cityscapesscripts  # and the import installs the alias

ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"
MODULES = ("", ".helpers", ".helpers.labels", ".evaluation.instance")


@pytest.fixture(autouse=True)
def never_imported():
    def forget():
        for name in list(sys.modules):
            if name.partition(".")[0] == "deeplearning":
                del sys.modules[name]

    forget()
    yield
    forget()


@pytest.mark.parametrize("public_first", [True, False])
def test_the_alias_gives_the_public_modules_themselves(public_first):
    names = ["cityscapesscripts", ALIAS] if public_first else [ALIAS, "cityscapesscripts"]
    for module in MODULES:
        first, second = [importlib.import_module(name + module) for name in names]
        assert first is second
        assert first.__name__ == first.__spec__.name == "cityscapesscripts" + module


def test_the_package_imports_cityscapesscripts_only_when_asked():
    code = "import sys, detco_d2; print([m for m in sys.modules if 'cityscapesscripts' in m])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_missing_public_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)  # Python's mark of what is missing
    with pytest.raises(ImportError, match="pip install cityscapesscripts$"):
        importlib.import_module(f"{ALIAS}.helpers.labels")


def test_an_unknown_module_below_the_alias_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="cityscapesscripts.no_such"):
        importlib.import_module(f"{ALIAS}.no_such")
    with pytest.raises(ModuleNotFoundError, match="deeplearning.unknown"):
        importlib.import_module("deeplearning.unknown")


def test_the_evaluation_is_mended_for_new_versions_of_numpy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(numpy, "in1d", raising=False)
    mend_cityscapesscripts()
    evaluation = importlib.import_module(f"{ALIAS}.evaluation.evalInstanceLevelSemanticLabeling")
    evaluation.writeDict2JSON({"pixels": numpy.int64(3)}, "matches.json")
    assert list(tmp_path.iterdir()) == []
    assert numpy.in1d(numpy.array([1, 2]), [2]).tolist() == [False, True]


def test_a_real_package_of_that_name_wins(monkeypatch, tmp_path):
    folder = tmp_path.joinpath(*ALIAS.split("."), "helpers")
    folder.mkdir(parents=True)
    (folder / "labels.py").write_text("labels = 'the real ones'")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module(f"{ALIAS}.helpers.labels").labels == "the real ones"
