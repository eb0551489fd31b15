#!/usr/bin/env python
"""Whether a GPU computes what the CPU does and runs whole trainings, and how fast: in four minutes.

python tools/check_gpu.py
python tools/check_gpu.py --device cpu    # the same checks, small: is it the GPU, or the program?

Needs no data. Ends with a table, check_gpu.json, and exit code 1 if a check fails. The aims, which
are for speed on an H100, fail nothing.
"""

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmark_speed import Case, measure, peak_memory, synchronised
from detectron2.config import CfgNode
from detectron2.engine.hooks import CallbackHook
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tabulate import tabulate

from detco_d2.config import load_config
from detco_d2.config_files import with_pairs
from detco_d2.data.datasets import list_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import StreamDataset, collate_views
from detco_d2.data.synthetic import draw_scenes
from detco_d2.engine.launch import launch
from detco_d2.engine.machine import adapt_to_machine
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.record import versions

ROOT = Path(__file__).resolve().parents[1]
DEMO, DETECTOR = "configs/demo/detco_R_18.yaml", "configs/demo/faster_rcnn_R_18_FPN.yaml"
SMALL = ["SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 2, "MODEL.DETCO.QUEUE_LENGTH", 64]
TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}  # dense bfloat16
GROUP_NORM = ["MODEL.RESNETS.NORM", "GN", "MODEL.DETCO.HEAD_NORM", ""]  # nothing of the batch
# Distances from the CPU, relative to what it finds, in float32 and in bfloat16.
ALLOWED = {
    "losses of 3 steps": (3e-3, 0.05),
    "first gradients, of group norm": (0.01, 0.4),
    "first running statistics": (3e-3, 0.1),
    "first keys": (5e-3, 0.3),
}


class Checks:
    """What the checks share, and what they found."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder, self.photos = device, folder, folder / "photos"
        self.is_small = device == "cpu"
        self.name = "CPU" if self.is_small else torch.cuda.get_device_name()
        self.file, self.small = (DEMO, SMALL) if self.is_small else ("configs/detco.yaml", [])
        self.batch, self.batches = (4, [2, 4]) if self.is_small else (8, [32, 128, 256, 512, 1024])
        self.fits, self.rate = self.batch, math.nan  # a batch up to 256, and its images/s
        self.rows: list[dict[str, Any]] = []

    def config(self, *settings: Any, file: str = "", device: str = "") -> CfgNode:
        words = [*self.small, "SOLVER.AMP.ENABLED", False, *settings]
        cfg = load_config(str(ROOT / (file or self.file)), words)
        adapt_to_machine(cfg, num_gpus=int((device or self.device) == "cuda"))
        return cfg

    def note(self, what: str, found: float, least: float, most: float, aim: bool = False) -> None:
        """A line: pass or FAIL, or of an aim met or missed."""
        result = (("missed", "met") if aim else ("FAIL", "pass"))[least <= found <= most]
        wanted = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        row = {"check": what, "found": f"{found:.4g}", "wanted": wanted, "result": result}
        print(*row.values(), sep=" | ", flush=True)
        self.rows.append(row)


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(t.detach().flatten().cpu() for t in tensors)]).double()


def three_steps(cfg: CfgNode, batch: int) -> dict[str, torch.Tensor]:
    """What ALLOWED names; batch norm makes rounding grow a hundredfold with each step."""
    case = Case(with_pairs(cfg, GROUP_NORM), batch)
    case.step()
    values = [flat(p.grad for p in case.trainer.parameters if p.grad is not None)]
    case = Case(cfg, batch)
    found = [case.step()]
    values.append(flat(b for name, b in case.model.named_buffers() if "running" in name))
    values.append(flat([case.model.queue.features[:, :batch]]))
    found += [case.step(), case.step()]
    losses = (step[name] for step in found for name in sorted(step) if "loss_" in name)
    return dict(zip(ALLOWED, [flat(map(torch.tensor, losses)), *values]))


def compare(checks: Checks, title: str, ours: CfgNode, theirs: CfgNode) -> None:
    found, expected = (three_steps(cfg, checks.batch) for cfg in (ours, theirs))
    for name, limits in ALLOWED.items():
        far = (found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-9)
        checks.note(f"{title}, {name}: distance", far.item(), 0, limits[ours.SOLVER.AMP.ENABLED])


def numbers(checks: Checks) -> None:
    expected = checks.config(device="cpu")
    compare(checks, "float32", checks.config(), expected)
    compare(checks, "bfloat16", checks.config("SOLVER.AMP.ENABLED", True), expected)


def views(checks: Checks) -> None:
    found = []
    for kind in ("fast", "device"):
        mapper = DetCoDatasetMapper(checks.config("INPUT.DETCO.AUGMENTATION", kind))
        stream = StreamDataset(list_images(str(checks.photos)), mapper, seed=0)
        batch = collate_views([stream[i] for i in range(8)])
        finished = mapper.finish(batch, torch.device(checks.device))
        found.append(flat(finished[view] for view in mapper.views))
    share = ((found[0] - found[1]).abs() > 1).double().mean().item()
    checks.note("device and fast views: share beyond one grey level", share, 0, 1e-4)


def undoing(checks: Checks) -> None:
    def state() -> list[torch.Tensor]:
        momenta = [slots["momentum_buffer"] for slots in case.optimizer.state.values()]
        return [tensor.clone() for tensor in [*case.model.state_dict().values(), *momenta]]

    case = Case(checks.config(), checks.batch)
    case.step()
    before, changed = state(), math.nan
    case.trainer.parameters[-1].register_hook(lambda gradient: gradient * math.nan)
    try:
        case.step()
    except FloatingPointError:  # a run survives some
        changed = sum(not torch.equal(*pair) for pair in zip(before, state()))
    checks.note("a poisoned step: tensors that it changed", changed, 0, 0)


def accumulation(checks: Checks) -> None:
    parts = checks.config(*GROUP_NORM, "SOLVER.ACCUMULATION_STEPS", 4)
    compare(checks, "4 parts of a batch", parts, checks.config(*GROUP_NORM))


def train_demo(checks: Checks, name: str, last: int, device: str = "") -> Any:
    """A trainer of the demo's model, from where one of this name stopped; with weights it had."""
    words = ["DATASETS.TRAIN", (str(checks.photos),), "OUTPUT_DIR", str(checks.folder / name)]
    cycle = ["SOLVER.MAX_ITER", 20, "SOLVER.CHECKPOINT_PERIOD", 10]
    cfg = checks.config(*words, *cycle, file=DEMO, device=device)
    seed_all_rng(cfg.SEED)
    trainer: Any = PretrainTrainer(cfg)
    trainer.resume_or_load(resume=trainer.checkpointer.has_checkpoint())
    trainer.kept = dict.fromkeys((10, 12, 20))
    keep = lambda t: t.kept.update({t.iter + 1: flat(t._trainer.parameters)})  # noqa: E731
    trainer.register_hooks([CallbackHook(after_step=lambda t: t.iter + 1 in t.kept and keep(t))])
    trainer.max_iter = last
    trainer.train()
    return trainer


def resume(checks: Checks) -> None:
    """After two steps rounding has not grown yet; after ten it may be all there is."""
    straight = train_demo(checks, "straight", 20).kept
    later = shutil.ignore_patterns("model_final*", "model_0000019*")
    for name in ("resumed", "resumed, first on the CPU"):
        shutil.copytree(checks.folder / "straight", checks.folder / name, ignore=later)
        if "CPU" in name:
            train_demo(checks, name, 11, "cpu")
        found = train_demo(checks, name, 20).kept
        for steps, most in ((12, 0.05), (20, math.inf)):
            way = straight[steps] - straight[10]
            far = ((found[steps] - straight[steps]).norm() / way.norm()).item()
            checks.note(f"10 + {steps - 10} steps, {name}: distance, of their way", far, 0, most)


def processes(checks: Checks) -> None:
    if checks.is_small or torch.cuda.device_count() > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", __file__, "--device", checks.device]
        code = subprocess.run([*command, "--process-of", checks.folder], timeout=180).returncode
        checks.note("two processes, equal queues: exit code", code, 0, 0)


def run_process(args: argparse.Namespace) -> None:
    """One of two processes, which fail if their queues differ."""
    trainer = train_demo(Checks(args.device, args.process_of), "two", 3)
    sys.exit(not torch.equal(*comm.all_gather(trainer._trainer.detco.queue.features.cpu())))


def speed(checks: Checks) -> None:
    cfg, rates = checks.config("SOLVER.AMP.ENABLED", True), {}
    for batch in checks.batches:
        case = None  # frees the one before
        try:
            case = Case(cfg, batch)
            case.step()
            memory = peak_memory(cfg.MODEL.DEVICE)
            seconds = measure({"step": case.step, "bare": case.bare}, 5, synchronised)
        except torch.OutOfMemoryError:
            break
        step, bare = (statistics.median(values) for values in seconds.values())
        rates[batch], name = batch / step, f"batch {batch}, bfloat16:"
        least, most = (1300, 24) if batch == 256 else (0, math.inf)
        checks.note(f"{name} images/s", rates[batch], least, math.inf, aim=True)
        checks.note(f"{name} step / bare encoders", step / bare, 0, 1.03, aim=True)
        checks.note(f"{name} GiB", memory, 0, most, aim=True)
        for peak in [value for card, value in TFLOPS.items() if card in checks.name]:
            share = rates[batch] * 0.0563 / peak  # an image's TFLOP, docs/speed.md
            checks.note(f"{name} share of {peak} TFLOP/s", share, 0, 1, aim=True)
    checks.fits = max(batch for batch in rates if batch <= 256)
    checks.rate, share = rates[checks.fits], rates[min(rates)] / rates[checks.fits]
    checks.note(f"images/s, batch {min(rates)} / {checks.fits}", share, 0.8, math.inf, aim=True)


def run(checks: Checks, script: str, file: str, words: list[Any], stops: bool) -> dict[str, Any]:
    """The last metrics of an entry script, which ends by itself or is asked to."""
    folder = Path(tempfile.mkdtemp(dir=checks.folder))
    metrics, log = folder / "metrics.json", folder / "check.txt"
    steps = 20 if checks.is_small or script == "train_net.py" else 40  # 20: a line of metrics
    end = time.monotonic() + (600 if checks.is_small else 90)
    command = [sys.executable, ROOT / script, "--num-gpus", int(not checks.is_small)]
    command += ["--config-file", ROOT / file, *words, "OUTPUT_DIR", folder]
    command += ["SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 10**6 if stops else steps]
    with open(log, "w") as out:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=out, stderr=out)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
        if stops and metrics.exists() and metrics.read_text().count("\n") >= steps // 20:
            process.terminate()
            process.wait(60)
    process.kill()  # has an effect only after 90 s
    code, wanted = process.wait(), 143 if stops else 0
    code = 128 - code if code < 0 else code  # as a shell says it
    checks.note(f"{script}{' and SIGTERM' if stops else ''}: exit code", code, wanted, wanted)
    if code != wanted:
        print(log.read_text()[-3000:])
        return {}
    return json.loads(metrics.read_text().splitlines()[-1])


def programs(checks: Checks) -> None:
    data = ["DATASETS.TRAIN", f"('{checks.photos}',)", *checks.small, "DATALOADER.NUM_WORKERS"]
    data += [min(16, os.cpu_count() or 1), "SOLVER.IMS_PER_BATCH", checks.fits]
    for kind, stops in (("fast", True), ("device", False)):
        words = [*data, "INPUT.DETCO.AUGMENTATION", kind]
        rate = run(checks, "pretrain_net.py", checks.file, words, stops).get("images_per_second", 0)
        checks.note(f"JPEG, {kind} views: images/s", rate, 0, math.inf, aim=True)
        checks.note(f"JPEG, {kind} views / the step", rate / checks.rate, 0.9, math.inf, aim=True)
    scenes = f"('scenes_train_16@{checks.folder}/scenes',)"
    words = ["DATASETS.TRAIN", scenes, "DATASETS.TEST", scenes, "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    words += ["MODEL.WEIGHTS", checks.folder / "straight" / "model_final.pth"]
    for stops in (True, False):
        run(checks, "train_net.py", DETECTOR, words, stops)


def check_all(checks: Checks) -> None:
    pictures = [checks.photos / f"{i}.jpg" for i in range(32)]
    draw_scenes(pictures, "photos", seed=0, size=(480, 640))
    for i, file in enumerate(7 * pictures):  # 256 in all, as a batch
        shutil.copy(file, checks.photos / f"{32 + i}.jpg")
    for part in (numbers, views, undoing, accumulation, resume, processes, speed, programs):
        gc.collect()
        torch.cuda.empty_cache()  # for other processes
        try:
            part(checks)
        except Exception:  # the others are still worth checking
            traceback.print_exc()
            checks.note(f"{part.__name__}: errors", 1, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(epilog=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, default="check_gpu.json", help="the JSON file")
    parser.add_argument("--process-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.num_gpus = int(args.device == "cuda")
    if args.process_of:
        return launch(run_process, args)
    if args.num_gpus > torch.cuda.device_count():
        sys.exit("check_gpu: this machine has no GPU; --device cpu makes the same checks without.")
    torch.backends.cudnn.allow_tf32 = False  # float32 is compared with float32
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(args.device, Path(folder))
        check_all(checks)
    record = {"device": checks.name, "versions": versions(), "checks": checks.rows}
    args.output.write_text(json.dumps(record, indent=1))
    print(f"\n{tabulate(checks.rows, 'keys')}\n\n{checks.name}, {time.monotonic() - start:.0f} s")
    sys.exit(any(row["result"] == "FAIL" for row in checks.rows))


if __name__ == "__main__":
    main()
