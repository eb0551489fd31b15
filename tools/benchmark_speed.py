#!/usr/bin/env python
"""How fast a pretraining step and its data are, as ratios to the bare network.

python tools/benchmark_speed.py --config-file configs/detco.yaml --batch 8
python tools/benchmark_speed.py --config-file configs/detco.yaml --batch 256 --num-gpus 1 \\
    --images /my/photos --trace trace.json SOLVER.AMP.ENABLED True
torchrun --nproc-per-node 2 tools/benchmark_speed.py --config-file configs/demo/detco_R_18.yaml

All variants of a table are timed in turn in one run, and medians compared; random pixels feed the
step. A trace opens in chrome://tracing or ui.perfetto.dev.
"""

import argparse
import io
import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image

from detco_d2.config import load_config
from detco_d2.config_checks import check_detco_config
from detco_d2.data.datasets import load_images
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.data.stream import build_pretrain_loader, collate_views
from detco_d2.engine.launch import launch
from detco_d2.engine.machine import adapt_to_machine, keep_freed_memory
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.engine.step import PretrainStep
from detco_d2.families import required_views
from detco_d2.modeling.distributed import RowExchange, batch_permutation, concat_all_gather

SWITCHES = {
    "channels_last": ["MODEL.DETCO.CHANNELS_LAST", False],
    "fused loss": ["MODEL.DETCO.FUSED_LOSS", False],
    "fused average": ["MODEL.DETCO.FUSED_EMA", False],
    "fused SGD": ["SOLVER.FUSED_SGD", False],
}
PLAIN = ["SOLVER.AMP.ENABLED", False, *itertools.chain(*SWITCHES.values())]


class Clock:
    """Times variants in turn, so that a drifting machine slows all of them."""

    def __init__(self, repeats: int, synchronise: Callable[[], None]) -> None:
        self.repeats = repeats
        self.synchronise = synchronise

    def __call__(self, variants: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of each call, by variant, after two calls that do not count."""
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for repeat in range(-2, self.repeats):
            for name, call in variants.items():
                self.synchronise()
                start = time.perf_counter()
                call()
                self.synchronise()
                if repeat >= 0:
                    seconds[name].append(time.perf_counter() - start)
        return seconds


def say(text: str = "") -> None:
    if comm.is_main_process():
        print(text, flush=True)


def show(title: str, seconds: dict[str, list[float]], images: int, base: str) -> None:
    """A table of medians, of images per second, and of the ratio to one of its rows."""
    say(f"\n{title}\n{'':34}{'median ms':>11}{'min ms':>10}{'images/s':>10}  / {base}")
    reference = statistics.median(seconds[base])
    for name, values in seconds.items():
        median = statistics.median(values)
        say(
            f"{name:34}{1e3 * median:11.1f}{1e3 * min(values):10.1f}{images / median:10.2f}"
            f"{median / reference:8.3f}"
        )


class Case:
    """A model with its optimiser, on batches of random pixels."""

    def __init__(self, cfg: CfgNode, batch_size: int) -> None:
        torch.manual_seed(0)
        views, self.batch = cfg.INPUT.DETCO, {}
        large, small = views.GLOBAL_SIZE, views.PATCH_SIZE
        shapes = {"global": (3, large, large), "local": (9, 3, small, small)}
        for name in required_views(cfg.MODEL.DETCO.FAMILIES):
            shape = (batch_size, *shapes[name.split("_")[0]])
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
            self.batch[name] = pixels.to(cfg.MODEL.DEVICE)
        self.model: Any = PretrainTrainer.build_model(cfg).train()
        self.optimizer = PretrainTrainer.build_optimizer(cfg, self.model)
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        device_ids = None if on_cpu else [comm.get_local_rank()]
        wrapped = create_ddp_model(self.model, broadcast_buffers=False, device_ids=device_ids)
        parts = cfg.SOLVER.ACCUMULATION_STEPS
        self.trainer = PretrainStep(wrapped, itertools.repeat(self.batch), self.optimizer, parts)
        self.trainer.iter = 0
        amp = cfg.SOLVER.AMP.ENABLED
        self.autocast = torch.autocast(torch.device(cfg.MODEL.DEVICE).type, torch.bfloat16, amp)

    def step(self) -> None:
        """A whole training step with its metrics, as `pretrain_net.py` makes it."""
        with EventStorage():
            self.trainer.run_step()

    def images(self, side: str) -> list[torch.Tensor | None]:
        views = (self.batch.get(f"{view}_{side}") for view in ("global", "local"))
        return [self.model._normalise(view) for view in views]

    def query_forward(self) -> torch.Tensor:
        with self.autocast:
            return torch.stack(list(self.model.query_encoder(*self.images("query")).values()))

    @torch.no_grad()
    def key_forward(self) -> torch.Tensor:
        with self.autocast:
            return torch.stack(list(self.model.key_encoder(*self.images("key")).values()))

    def query(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.query_forward().sum().backward()

    def bare(self) -> None:
        """What a step cannot do without: query forward and backward, key forward."""
        self.query()
        self.key_forward()

    def parts(self) -> dict[str, Callable[[], Any]]:
        """The parts of a step, each to be timed alone."""
        model = self.model
        with torch.no_grad():
            embeddings = self.query_forward().float()
            names = model.query_encoder(*self.images("query"))
        leaf = embeddings.detach().requires_grad_()
        keys = F.normalize(torch.randn_like(model.queue.features[:, : len(leaf[0])]), dim=2)

        def losses(watched: bool = False) -> None:
            model.watch_closely = watched  # as it is at every 20th step
            sum(model._compute_losses(dict(zip(names, leaf)), keys).values()).backward()
            model._forget_parts()
            model.watch_closely = False

        result = {
            "bare encoders": self.bare,
            "query forward + backward": self.query,
            "key forward": self.key_forward,
            "losses forward + backward": losses,
            "the same, watched closely": lambda: losses(True),
            "queue": lambda: model.queue.enqueue(keys),
            "momentum encoder": model._update_momentum_encoder,
            "optimiser": self.optimizer.step,
        }
        if comm.get_world_size() > 1:
            rows = torch.cat([v.flatten(1) for n, v in self.batch.items() if "key" in n], dim=1)
            order = batch_permutation(len(rows) * comm.get_world_size(), seed=0)
            result["shuffle of key images"] = lambda: RowExchange(rows, order).wait()
            result["gather of keys"] = lambda: concat_all_gather(keys, dim=1)
        return result


def measure_steps(args: argparse.Namespace, cfg: CfgNode, clock: Clock) -> None:
    case = Case(cfg, args.batch)
    case.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if cfg.MODEL.DEVICE != "cpu":
        torch.cuda.reset_peak_memory_stats()
        case.step()
        peak = torch.cuda.max_memory_allocated() / 2**30
    variants = {"bare encoders": case.bare, "step": case.step}
    others = {f"without {name}": switch for name, switch in SWITCHES.items()}
    plain: Case | None = None
    if args.plain:
        plain = Case(changed(cfg, PLAIN), args.batch)
        variants["plain step in float32"] = plain.step
    for name in others if args.switches else ():
        variants[name] = Case(changed(cfg, others[name]), args.batch).step
    for file in args.against or ():
        variants[f"step of {Path(file).name}"] = Case(read_config(args, file), args.batch).step
    images = args.batch * comm.get_world_size()
    precision = "bfloat16" if cfg.SOLVER.AMP.ENABLED else "float32"
    show(f"Step, {precision}, batch {images}", clock(variants), images, "bare encoders")
    say(f"peak memory after one step: {peak:.2f} GiB")

    parts = case.parts()
    mapper, batch = augmentation_batch(cfg, args.batch)
    parts["augment on the device"] = lambda: mapper.finish(batch, torch.device(cfg.MODEL.DEVICE))
    if plain is not None:
        for name in ("losses forward + backward", "momentum encoder", "optimiser"):
            parts[f"plain {name}"] = plain.parts()[name]
    show("Parts, each alone", clock(parts), images, "bare encoders")
    if args.trace:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if cfg.MODEL.DEVICE != "cpu":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            case.step()
        if comm.is_main_process():
            profile.export_chrome_trace(args.trace)


def augmentation_batch(cfg: CfgNode, batch_size: int) -> tuple[DetCoDatasetMapper, dict[str, Any]]:
    """What a loader gives with INPUT.DETCO.AUGMENTATION "device", and the mapper to finish it."""
    mapper = DetCoDatasetMapper(changed(cfg, ["INPUT.DETCO.AUGMENTATION", "device"]))
    content = io.BytesIO()
    Image.effect_noise((640, 480), 50).convert("RGB").save(content, "JPEG")
    image = {"file_name": "noise.jpg", "image_bytes": content.getvalue()}
    return mapper, collate_views([mapper(image) for _ in range(batch_size)])


def measure_data(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Views of each kind on one core, in seconds of CPU; then whole loaders."""
    torch.set_num_threads(1)
    images = load_images([args.images])[: args.num_images]
    kinds = ("pil", "fast", "device")
    mappers = {
        kind: DetCoDatasetMapper(changed(cfg, ["INPUT.DETCO.AUGMENTATION", kind])) for kind in kinds
    }
    calls: dict[str, Callable[[Any], Any]] = {"decoding alone": mappers["pil"].decode}
    calls |= {f"views, {kind}": mapper for kind, mapper in mappers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            start = time.process_time()
            for image in images:
                call(image)
            seconds[name].append(time.process_time() - start)
    show("Data on one core, seconds of CPU", seconds, len(images), "views, pil")

    workers, count = cfg.DATALOADER.NUM_WORKERS, len(images) // args.batch
    say(f"\nLoader with {workers} workers, batch {args.batch}")
    for kind in kinds:
        loader = iter(
            build_pretrain_loader(
                images, mappers[kind], total_batch_size=args.batch, num_workers=workers, seed=0
            )
        )
        next(loader)  # the workers start
        start = time.perf_counter()
        for _ in range(count):
            mappers[kind].finish(next(loader), torch.device(cfg.MODEL.DEVICE))
        rate = count * args.batch / (time.perf_counter() - start)
        say(f"{kind:34}{rate:8.1f} images/s")
        del loader


def read_config(args: argparse.Namespace, file: str) -> CfgNode:
    cfg = load_config(file, args.opts)
    check_detco_config(cfg)
    adapt_to_machine(cfg, args.num_gpus)
    return cfg


def changed(cfg: CfgNode, settings: list[Any]) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list(settings)
    return cfg


def main(args: argparse.Namespace) -> None:
    cfg = read_config(args, args.config_file)
    synchronise = torch.cuda.synchronize if args.num_gpus else lambda: None
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if args.num_gpus else f"{torch.get_num_threads()} threads"
    say(f"{args.config_file}, torch {torch.__version__}, {device}, {comm.get_world_size()} process")
    if not args.num_gpus and cfg.SOLVER.KEEP_FREED_MEMORY:
        keep_freed_memory()
    if not args.data_only:
        measure_steps(args, cfg, Clock(args.repeats, synchronise))
    if args.images and comm.is_main_process():
        measure_data(args, cfg)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/detco.yaml")
    parser.add_argument("--batch", type=int, default=8, help="images a process")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-gpus", type=int, default=0, help="0 is the CPU")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{2**14 + os.getpid() % 2**14}")
    parser.add_argument("--plain", action="store_true", help="also time the plain path")
    parser.add_argument("--switches", action="store_true", help="also time each switch turned off")
    parser.add_argument("--against", action="append", help="a config whose step is timed as well")
    parser.add_argument("--images", help="a folder or data set: also time views and loaders")
    parser.add_argument("--num-images", type=int, default=64, help="of them")
    parser.add_argument("--data-only", action="store_true")
    parser.add_argument("--trace", help="write a Chrome trace of one step to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    launch(main, arguments)
