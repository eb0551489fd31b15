"""Shared fixtures: small configs, a batch of views, scenes, real data where it is given."""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin

import detco_d2
from detco_d2.config_files import flatten
from detco_d2.data.cityscapes import make_train_id_files
from detco_d2.data.synthetic import write_scenes
from detco_d2.engine.machine import adapt_to_machine

from .layouts import write_cityscapes, write_coco, write_voc
from .warm import ROOT


def load_config(file: str, *settings: object) -> CfgNode:
    cfg = get_cfg()
    detco_d2.add_detco_config(cfg)
    cfg.merge_from_file(os.path.join(ROOT, "configs", file))
    cfg.merge_from_list(list(settings))
    adapt_to_machine(cfg, num_gpus=0)
    return cfg


with open(os.path.join(ROOT, "tests/fixtures/settings.yaml")) as _file:
    SETTINGS = {
        name: [word for pair in flatten(keys) for word in pair]
        for name, keys in yaml.safe_load(_file).items()
    }
R18, NARROW = SETTINGS["R18"], SETTINGS["NARROW"]
TINY = NARROW + SETTINGS["TINY"]


def tiny_config(*settings: object, file: str = "detco.yaml") -> CfgNode:
    """A DetCo that steps in a twentieth of a second."""
    return load_config(file, *TINY, *settings)


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module, each time anew."""
    path = os.path.join(ROOT, "tools", f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(tool: ModuleType, *words: object) -> None:
    """Run a tool in this process with the words of a command line."""
    with mock.patch.object(sys, "argv", [str(tool.__file__), *map(str, words)]):
        tool.main()


def make_batch(
    images: int = 4, seed: int = 0, size: int = 48, patch: int = 16
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"global": (images, 3, size, size), "local": (images, 9, 3, patch, patch)}
    return {
        f"{view}_{side}": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        for view, shape in shapes.items()
        for side in ("query", "key")
    }


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of rendered scenes: 12 for training, 6 for evaluation."""
    root = str(tmp_path_factory.mktemp("scenes"))
    write_scenes(root, "train", 12, seed=0, size=(96, 128))
    write_scenes(root, "test", 6, seed=0, size=(96, 128))
    return root


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as DETECTRON2_DATASETS names it; every class is in each split of each layout."""
    root = str(tmp_path_factory.mktemp("layouts"))
    write_coco(root, 16, seed=0, size=(160, 208))
    write_voc(root, 12, seed=0, size=(120, 160))
    write_cityscapes(root, 12, seed=0, size=(120, 240))
    return root


@pytest.fixture(scope="module")
def standard_data(layouts: str) -> Iterator[str]:
    """Detectron2's built-in COCO, VOC and Cityscapes names read `layouts` while a module runs."""
    for split in ("train", "val"):
        make_train_id_files(os.path.join(layouts, "cityscapes", "gtFine", split))
    catalogs = (DatasetCatalog, MetadataCatalog)
    before = [catalog.data for catalog in catalogs]
    with pytest.MonkeyPatch.context() as patch:
        for catalog in catalogs:  # empty, since neither takes a name twice
            patch.setattr(catalog, "data", {})
        builtin.register_all_coco(layouts)
        builtin.register_all_pascal_voc(layouts)
        builtin.register_all_cityscapes(layouts)
        for catalog, others in zip(catalogs, before):
            catalog.data = {**others, **catalog.data}
        yield layouts


@pytest.fixture(scope="session")
def real_data() -> str:
    """The folder of DETECTRON2_DATASETS, if it has COCO; otherwise the test is skipped."""
    root = os.environ.get("DETECTRON2_DATASETS", "")
    if not os.path.isdir(os.path.join(root, "coco", "annotations")):
        pytest.skip("needs DETECTRON2_DATASETS with coco/ inside")
    return root


class _TimeLeft:
    """Says now and then how many of the tests are done, and when the rest will be."""

    def __init__(self) -> None:
        self.start = self.said = time.time()
        self.total = self.done = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.total = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.total = len(ids)

    def pytest_runtest_logfinish(self) -> None:
        now = time.time()
        self.done += 1
        if now - self.said > 20:
            self.said = now
            left = (now - self.start) / self.done * (self.total - self.done) / 60
            print(f"  [{self.done} of {self.total} tests, about {left:.1f} min left]", flush=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_TimeLeft())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind in ("failed", "error"):
        for report in terminalreporter.getreports(kind):
            terminalreporter.line(f"alone: {sys.executable} -m pytest '{report.nodeid}'")
