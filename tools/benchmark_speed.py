#!/usr/bin/env python
"""How fast a pretraining step, or its data, is: as ratios to the bare network.

python tools/benchmark_speed.py --config-file configs/detco.yaml --batch 8
python tools/benchmark_speed.py --batch 32 --num-gpus 1 --compile reduce-overhead
python tools/benchmark_speed.py --images /my/photos

All variants of a table are timed in turn in one run, and medians compared; random pixels feed the
step. --num-gpus 0, the default, is the CPU.
"""

import argparse
import gc
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.data.datasets import load_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.engine.launch import ends_with_one_line
from detco_d2.engine.machine import adapt_to_machine, check_gpus, keep_freed_memory
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.step import PretrainStep
from detco_d2.files import at_home

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the plain formulas
from tests.references import make_plain, make_plain_sgd

Calls = dict[str, Callable[[], Any]]
MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; all but one: CUDA graphs


def measure(calls: Calls, repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """The seconds that each call takes, so many times.

    The calls are timed in turn, so that a drifting machine slows all; two rounds do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-2, repeats):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat >= 0:
                seconds[name].append(clock() - start)
    return seconds


def show(title: str, seconds: dict[str, list[float]], images: int, base: str) -> None:
    """Print medians, images per second, and ratios to one of the rows."""
    reference = statistics.median(seconds[base])
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append([name, 1e3 * median, 1e3 * min(values), images / median, median / reference])
    headers = ["", "median ms", "min ms", "images/s", f"/ {base}"]
    table = tabulate(rows, headers, floatfmt=("", ".1f", ".1f", ".2f", ".3f"))
    print(f"\n{title}\n{table}", flush=True)


def synchronised() -> float:
    """The time at which the device has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: str) -> float:
    """The most GiB that the device has given to this process so far."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30


class Case:
    """A model with its optimiser, on batches of random pixels."""

    def __init__(self, cfg: CfgNode, batch_size: int, is_plain: bool = False) -> None:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK  # as the entry scripts do
        gc.collect()  # a model that autocasts refers to itself
        if cfg.MODEL.DEVICE != "cpu":
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        self.model: Any = PretrainTrainer.build_model(cfg).train()
        self.optimizer = PretrainTrainer.build_optimizer(cfg, self.model)
        if is_plain:
            make_plain(self.model)
            make_plain_sgd(self.optimizer)
        large, small = cfg.INPUT.DETCO.GLOBAL_SIZE, cfg.INPUT.DETCO.PATCH_SIZE
        shapes = {"global": (3, large, large), "local": (9, 3, small, small)}
        self.batch = {}
        for name in self.model.views:
            shape = (batch_size, *shapes[name.partition("_")[0]])
            self.batch[name] = torch.randint(0, 256, shape, dtype=torch.uint8).to(cfg.MODEL.DEVICE)
        batches, parts = itertools.repeat(self.batch), cfg.SOLVER.ACCUMULATION_STEPS
        self.trainer = PretrainStep(self.model, batches, self.optimizer, parts=parts)
        self.trainer.iter = 0
        self.autocast = torch.autocast(cfg.MODEL.DEVICE, torch.bfloat16, cfg.SOLVER.AMP.ENABLED)

    def step(self) -> dict[str, float]:
        """A whole training step with its metrics, as `pretrain_net.py` makes it."""
        with EventStorage() as storage:
            self.trainer.run_step()
        return {name: value for name, (value, _) in storage.latest().items()}

    def encode(self, encoder: Any, side: str) -> torch.Tensor:
        views = (self.batch.get(f"{view}_{side}") for view in ("global", "local"))
        with self.autocast:
            return sum(encoder(*(self.model.normalise(view) for view in views)).values())

    def query(self) -> None:
        """Forward and backward of the query encoder."""
        self.optimizer.zero_grad(set_to_none=True)
        self.encode(self.model.query_encoder, "query").sum().backward()

    def bare(self) -> None:
        """What a step cannot do without: that, and the key encoder's forward."""
        self.query()
        with torch.no_grad():
            self.encode(self.model.key_encoder, "key")


def measure_step(args: argparse.Namespace, cfg: CfgNode) -> None:
    case = Case(cfg, args.batch)
    case.step()
    print(f"peak memory after one step: {peak_memory(cfg.MODEL.DEVICE):.2f} GiB")
    calls: Calls = {"bare encoders": case.bare, "query": case.query, "step": case.step}
    precision = "bfloat16" if cfg.SOLVER.AMP.ENABLED else "float32"
    for mode in args.compile:
        compiled = Case(cfg, args.batch)
        for encoder in (compiled.model.query_encoder, compiled.model.key_encoder):
            encoder.compile(mode=mode, dynamic=False)
        calls[f"step, compiled: {mode}"] = compiled.step
    if args.plain:
        cfg.SOLVER.AMP.ENABLED = False
        calls["plain step in float32"] = Case(cfg, args.batch, is_plain=True).step
    title = f"Step, {precision}, batch {args.batch}"
    show(title, measure(calls, args.repeats, synchronised), args.batch, "bare encoders")


def measure_data(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Views of each kind on one core, in seconds of CPU."""
    torch.set_num_threads(1)
    images = load_images([args.images])[: args.num_images]

    def over_images(call: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: [call(image) for image in images]

    calls: Calls = {}
    for kind in ("pil", "fast", "device"):
        cfg.INPUT.DETCO.AUGMENTATION = kind
        mapper = DetCoDatasetMapper(cfg)
        calls.setdefault("decoding alone", over_images(mapper.decode))
        calls[f"views, {kind}"] = over_images(mapper)
    title = "Data on one core, seconds of CPU"
    show(title, measure(calls, args.repeats, time.process_time), len(images), "views, pil")


@ends_with_one_line("benchmark_speed")
def main() -> None:
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(config_file="configs/detco.yaml", num_gpus=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="also time the plain formulas")
    parser.add_argument("--compile", action="append", choices=MODES, default=[], help="repeatable")
    parser.add_argument("--images", help="a folder or data set: time its views, not the step")
    parser.add_argument("--num-images", type=int, default=64, help="of them")
    args = parser.parse_args(at_home(sys.argv[1:]))
    check_gpus(args.num_gpus)
    cfg = load_config(args.config_file, args.opts)
    check_detco_config(cfg)
    adapt_to_machine(cfg, args.num_gpus)
    device = torch.cuda.get_device_name() if args.num_gpus else f"{torch.get_num_threads()} threads"
    print(f"{args.config_file}, torch {torch.__version__}, {device}")
    if not args.num_gpus:
        keep_freed_memory()
    (measure_data if args.images else measure_step)(args, cfg)


if __name__ == "__main__":
    main()
