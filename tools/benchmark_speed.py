#!/usr/bin/env python
"""How fast a pretraining step and its data are, as ratios to the bare network.

python tools/benchmark_speed.py --config-file configs/detco.yaml --batch 8
python tools/benchmark_speed.py --config-file configs/detco.yaml --batch 256 --num-gpus 1 \\
    --images /my/photos SOLVER.AMP.ENABLED True
torchrun --nproc-per-node 2 tools/benchmark_speed.py --config-file configs/demo/detco_R_18.yaml

All variants of a table are timed in turn in one run, and medians compared; random pixels feed the
step. --num-gpus 0, the default, is the CPU.
"""

import argparse
import io
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model, default_argument_parser
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.data.datasets import load_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import collate_views
from detco_d2.engine.launch import launch
from detco_d2.engine.machine import adapt_to_machine, keep_freed_memory
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.step import PretrainStep
from detco_d2.modeling.distributed import RowExchange, batch_permutation, concat_all_gather

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the plain formulas
from tests.references import make_plain, make_plain_sgd

Calls = dict[str, Callable[[], Any]]


def timed(variants: Calls, repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each call, in turn, so that a drifting machine slows all; two do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(-2, repeats):
        for name, call in variants.items():
            start = clock()
            call()
            if repeat >= 0:
                seconds[name].append(clock() - start)
    return seconds


def synchronised() -> float:
    """The time at which the device has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def say(text: str) -> None:
    if comm.is_main_process():
        print(text, flush=True)


def show(title: str, seconds: dict[str, list[float]], images: int, base: str) -> None:
    """A table of medians, of images per second, and of the ratio to one of its rows."""
    reference = statistics.median(seconds[base])
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append([name, 1e3 * median, 1e3 * min(values), images / median, median / reference])
    headers = ["", "median ms", "min ms", "images/s", f"/ {base}"]
    say(f"\n{title}\n" + tabulate(rows, headers, floatfmt=("", ".1f", ".1f", ".2f", ".3f")))


class Case:
    """A model with its optimiser, on batches of random pixels."""

    def __init__(self, cfg: CfgNode, batch_size: int, is_plain: bool = False) -> None:
        torch.manual_seed(0)
        device = torch.device(cfg.MODEL.DEVICE)
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
            self.batch[name] = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
        device_ids = None if device.type == "cpu" else [comm.get_local_rank()]
        wrapped = create_ddp_model(self.model, broadcast_buffers=False, device_ids=device_ids)
        batches, parts = itertools.repeat(self.batch), cfg.SOLVER.ACCUMULATION_STEPS
        self.trainer = PretrainStep(wrapped, batches, self.optimizer, parts=parts)
        self.trainer.iter = 0
        self.autocast = torch.autocast(device.type, torch.bfloat16, cfg.SOLVER.AMP.ENABLED)

    def step(self) -> None:
        """A whole training step with its metrics, as `pretrain_net.py` makes it."""
        with EventStorage():
            self.trainer.run_step()

    def encode(self, encoder: Any, side: str) -> dict[tuple[str, str], torch.Tensor]:
        views = (self.batch.get(f"{view}_{side}") for view in ("global", "local"))
        with self.autocast:
            return encoder(*(self.model.normalise(view) for view in views))

    def query(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        embeddings = self.encode(self.model.query_encoder, "query")
        torch.stack(list(embeddings.values())).sum().backward()

    @torch.no_grad()
    def key(self) -> None:
        self.encode(self.model.key_encoder, "key")

    def bare(self) -> None:
        """What a step cannot do without: query forward and backward, key forward."""
        self.query()
        self.key()

    def parts(self) -> Calls:
        """The parts of a step, each to be timed alone."""
        model = self.model
        with torch.no_grad():
            queries = self.encode(model.query_encoder, "query")
        queries = {name: query.float().requires_grad_() for name, query in queries.items()}
        count = len(next(iter(queries.values())))
        keys = F.normalize(torch.randn_like(model.queue.features[:, :count]), dim=2)

        def losses(closely: bool = False) -> None:
            model.monitor.closely = closely  # as it is at every 20th step
            sum(model.contrast(queries, keys).values()).backward()
            model.monitor.forget()

        model.begin_step()  # outside of a step nothing is watched
        result: Calls = {
            "bare encoders": self.bare,
            "query forward + backward": self.query,
            "key forward": self.key,
            "losses forward + backward": losses,
            "the same, watched closely": lambda: losses(True),
            "queue": lambda: model.queue.enqueue(keys),
            "momentum encoder": model.update_momentum_encoder,
            "optimiser": self.optimizer.step,
        }
        if comm.get_world_size() > 1:
            rows = torch.cat([v.flatten(1) for n, v in self.batch.items() if "key" in n], dim=1)
            order = batch_permutation(len(rows) * comm.get_world_size(), seed=0)
            result["shuffle of key images"] = lambda: RowExchange(rows, order).wait()
            result["gather of keys"] = lambda: concat_all_gather(keys, dim=1)
        return result


def measure_steps(args: argparse.Namespace, cfg: CfgNode) -> None:
    case = Case(cfg, args.batch)
    case.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if cfg.MODEL.DEVICE != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**30
    variants: Calls = {"bare encoders": case.bare, "step": case.step}
    parts = case.parts()
    mapper, batch = augmentation_batch(cfg, args.batch)
    parts["augment on the device"] = lambda: mapper.finish(batch, torch.device(cfg.MODEL.DEVICE))
    if args.plain:
        plain = Case(changed(cfg, "SOLVER.AMP.ENABLED", False), args.batch, is_plain=True)
        variants["plain step in float32"] = plain.step
        for name in ("losses forward + backward", "momentum encoder", "optimiser"):
            parts[f"plain {name}"] = plain.parts()[name]
    for file in args.against or ():
        variants[f"step of {Path(file).name}"] = Case(read_config(args, file), args.batch).step
    images = args.batch * comm.get_world_size()
    precision = "bfloat16" if cfg.SOLVER.AMP.ENABLED else "float32"
    seconds = timed(variants, args.repeats, synchronised)
    show(f"Step, {precision}, batch {images}", seconds, images, "bare encoders")
    say(f"\npeak memory after one step: {peak:.2f} GiB")
    seconds = timed(parts, args.repeats, synchronised)
    show("Parts, each alone", seconds, images, "bare encoders")


def augmentation_batch(cfg: CfgNode, batch_size: int) -> tuple[DetCoDatasetMapper, dict[str, Any]]:
    """What a loader gives with INPUT.DETCO.AUGMENTATION "device", and the mapper to finish it."""
    mapper = DetCoDatasetMapper(changed(cfg, "INPUT.DETCO.AUGMENTATION", "device"))
    content = io.BytesIO()
    Image.effect_noise((640, 480), 50).convert("RGB").save(content, "JPEG")
    image = {"file_name": "noise.jpg", "image_bytes": content.getvalue()}
    return mapper, collate_views([mapper(image) for _ in range(batch_size)])


def measure_data(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Views of each kind on one core, in seconds of CPU."""
    torch.set_num_threads(1)
    images = load_images([args.images])[: args.num_images]

    def over_images(call: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: [call(image) for image in images]

    calls: Calls = {}
    for kind in ("pil", "fast", "device"):
        mapper = DetCoDatasetMapper(changed(cfg, "INPUT.DETCO.AUGMENTATION", kind))
        calls.setdefault("decoding alone", over_images(mapper.decode))
        calls[f"views, {kind}"] = over_images(mapper)
    seconds = timed(calls, args.repeats, time.process_time)
    show("Data on one core, seconds of CPU", seconds, len(images), "views, pil")


def read_config(args: argparse.Namespace, file: str) -> CfgNode:
    cfg = load_config(file, args.opts)
    check_detco_config(cfg)
    adapt_to_machine(cfg, args.num_gpus)
    return cfg


def changed(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list([key, value])
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = read_config(args, args.config_file)
    device = torch.cuda.get_device_name() if args.num_gpus else f"{torch.get_num_threads()} threads"
    say(f"{args.config_file}, torch {torch.__version__}, {device}, {comm.get_world_size()} process")
    if not args.num_gpus:
        keep_freed_memory()
    if not args.data_only:
        measure_steps(args, cfg)
    if args.images and comm.is_main_process():
        measure_data(args, cfg)


def parse() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(config_file="configs/detco.yaml", num_gpus=0)
    parser.add_argument("--batch", type=int, default=8, help="images a process")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="also time the plain formulas")
    parser.add_argument("--against", action="append", help="a config whose step is timed as well")
    parser.add_argument("--images", help="a folder or data set: also time its views")
    parser.add_argument("--num-images", type=int, default=64, help="of them")
    parser.add_argument("--data-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    launch(main, arguments)
