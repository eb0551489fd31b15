"""The benchmark command: it runs what is missing, resumes, skips, and outlives a failed cell."""

import json
import os
import re
import sys

import pytest

from . import warm
from .conftest import ROOT, call, load_config, load_tool

SETTINGS = ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def tool():
    return load_tool("benchmark")


@pytest.fixture
def voc(layouts):
    return os.path.join(layouts, "VOC2007")


class FakeTraining:
    """Stands in for train_net.py: notes its command lines, and fails or is cut off as told."""

    def __init__(self):
        self.commands, self.fails, self.cut = [], set(), set()

    def __call__(self, command, console, progress):
        folder = command[command.index("OUTPUT_DIR") + 1]
        self.commands.append(command)
        number = len(self.commands)
        if number in self.fails:
            console.write_text("RuntimeError: out of memory\n")
            return 1
        if number in self.cut:
            open(os.path.join(folder, "last_checkpoint"), "w").close()
            raise KeyboardInterrupt
        with open(os.path.join(folder, "results.json"), "w") as file:
            json.dump({"bbox": {"AP": number, "AP50": 50.0, "AP75": 5.0}}, file)
        return 0

    def pairs(self, number):
        opts = self.commands[number - 1]
        return {key: opts[i + 1] for i, key in enumerate(opts[:-1]) if key.isupper() or "." in key}


@pytest.fixture
def bench(tool, voc, tmp_path, monkeypatch):
    """Run the command on four cells: random twice, for two seeds, on half and on all images."""
    fake = FakeTraining()
    monkeypatch.setattr(tool, "run_training", fake)
    suite = os.path.join(ROOT, "configs", "quick", "retinanet_R_18_FPN.yaml")
    line = f"--suite {suite} --init random --seeds 2 --fraction 0.5 --fraction 1"

    def run(*more):
        data = f"--data {voc}:trainval {voc}:test".split()
        call(tool, "--output", tmp_path, *line.split(), *data, *more)

    run.fake, run.output = fake, tmp_path
    return run


def statuses(output):
    return [run["status"] for run in json.loads((output / "results.json").read_text())["runs"]]


def test_a_second_call_runs_nothing(bench):
    bench()
    assert len(bench.fake.commands) == 4 and statuses(bench.output) == ["done"] * 4
    bench()
    assert len(bench.fake.commands) == 4
    assert re.search("2.0 ± 1.4 +. 50.0 ± 0.0 ", (bench.output / "results.md").read_text())


def test_every_run_gets_its_data_seed_and_evaluations(bench, voc):
    bench("--evaluations", "5", "--opts", "SOLVER.BASE_LR", "0.5")
    last = bench.fake.pairs(4)
    assert last["SEED"] == "1"
    assert last["TEST.EVAL_PERIOD"] == "60" and last["SOLVER.BASE_LR"] == "0.5"
    trained = [bench.fake.pairs(number)["DATASETS.TRAIN"] for number in (1, 3)]  # the last stands
    assert trained == [repr((f"{voc}:trainval%50,seed={seed}",)) for seed in (0, 1)]


def test_a_failed_cell_is_outlived_reported_and_tried_again(bench, caplog):
    bench.fake.fails = {2}
    with pytest.raises(SystemExit, match="1 of 4 cells failed"):
        bench()
    assert statuses(bench.output).count("done") == 3
    assert "Not done:" in (bench.output / "results.md").read_text()
    bench()
    assert len(bench.fake.commands) == 5 and statuses(bench.output) == ["done"] * 4


def test_a_cut_off_cell_is_resumed(bench):
    bench.fake.cut = {3}
    with pytest.raises(KeyboardInterrupt):
        bench()
    bench()
    assert ["--resume" in command for command in bench.fake.commands] == [False] * 3 + [True, False]


def test_shards_share_the_work_and_the_report_merges_them(bench):
    bench("--shard", "1/2")
    assert statuses(bench.output).count("done") == 2 == len(bench.fake.commands)
    bench("--shard", "0/2")
    assert len(bench.fake.commands) == 4 and statuses(bench.output) == ["done"] * 4


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(bench):
    bench()
    with pytest.raises(SystemExit, match="SOLVER.MAX_ITER: 300 there, 400 now") as refused:
        bench("--opts", "SOLVER.MAX_ITER", "400")
    assert "MODEL.WEIGHTS" not in str(refused.value)  # only what differs
    assert len(bench.fake.commands) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--init", "detco=/no/such.pth"], "No weight file at '/no/such.pth'"),
        (["--data", "/no/such:a", "/no/such:b"], "neither a registered data set nor"),
        (["--shard", "2/2"], "0 <= i < n"),
        (["--shard", "1"], "0 <= i < n"),
        (["--suite", "papper"], "no files, and no suite"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(bench, arguments, message):
    with pytest.raises(SystemExit, match=message):
        bench(*arguments)
    assert not bench.fake.commands


def test_weights_bring_their_input_but_not_another_depth(bench, tool, tmp_path):
    import torch

    from detco_d2.weights.input_spec import InputSpec

    assert tool.read_spec("") == {}
    path = str(tmp_path / "backbone.pth")
    spec = InputSpec(load_config("detco.yaml", "MODEL.PIXEL_STD", [1.0, 1.0, 1.0]))
    model = {"res2.0.conv1.weight": torch.zeros(1)}
    torch.save({"model": model, "input_spec": spec.state_dict()}, path)
    with pytest.raises(SystemExit, match="--init r50 is a ResNet-50, and .* has a ResNet-18"):
        bench("--init", f"r50={path}")
    spec = InputSpec(
        load_config("quick/retinanet_R_18_FPN.yaml", "MODEL.PIXEL_STD", [1.0, 1.0, 1.0])
    )
    torch.save({"model": model, "input_spec": spec.state_dict()}, path)
    tool.read_spec.cache_clear()
    bench("--init", f"r18={path}")
    assert bench.fake.pairs(2)["MODEL.PIXEL_STD"] == "[1.0, 1.0, 1.0]"


def test_the_paper_suite_is_every_protocol(tool):
    assert len(tool.find_configs(["paper"])) == 21 and len(tool.find_configs(["quick"])) == 2


def test_a_cell_runs_for_real_and_again_from_its_checkpoint(voc, tmp_path):
    command = [sys.executable, "-W", "ignore", os.path.join(ROOT, "tools", "benchmark.py")]
    command += ["--suite", os.path.join(ROOT, "configs/quick/retinanet_R_18_FPN.yaml")]
    command += ["--init", "random", "--seeds", "1", "--output", str(tmp_path)]
    command += ["--data", f"{voc}:trainval", f"{voc}:test"]
    command += ["--evaluations", "2", "--opts", *SETTINGS]
    found = []
    for _ in range(2):
        done = warm.run(command)
        assert done.returncode == 0, done.stderr[-2000:]
        run = json.loads((tmp_path / "results.json").read_text())["runs"][0]
        assert run["status"] == "done" and len(run["metrics"]) == 3
        found.append(run["metrics"])
        (cell,) = tmp_path.glob("cells/**/results.json")
        cell.unlink()  # as if it had been cut off in its last evaluation
    assert found[0] == found[1]
    assert "Starting training from iteration 2" in (cell.parent / "log.txt").read_text()


def test_missing_data_ends_both_entry_scripts_before_a_process_starts(tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    for script, config, what in (
        ("train_net.py", "voc/faster_rcnn_R_50_C4_24k.yaml", "VOC2007/ImageSets/Main/trainval.txt"),
        ("pretrain_net.py", "detco.yaml", "imagenet/train"),
    ):
        command = [sys.executable, "-W", "ignore", script, "--num-gpus", "0"]
        done = warm.run([*command, "--config-file", f"configs/{config}"], env=environment)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"MISSING {tmp_path}/{what}" in done.stderr
        assert f"DETECTRON2_DATASETS is {str(tmp_path)!r}" in done.stderr
