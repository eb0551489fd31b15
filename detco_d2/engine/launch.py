"""From a command line to processes: Detectron2's launcher, torchrun, or this very process."""

import argparse
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from ..compat import create_local_process_group
from ..files import at_home
from .machine import check_gpus
from .stopping import SIGNALS

logger = logging.getLogger(__name__)


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and end the process where its config file is no file."""
    args = parser.parse_args(at_home(sys.argv[1:]))
    if not os.path.isfile(args.config_file):
        sys.exit(f"--config-file {args.config_file!r} is no file; try configs/detco.yaml")
    return args


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the description as it is written."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=form)


@contextlib.contextmanager
def ends_with_one_line(program: str) -> Iterator[None]:
    """End the process with what a check says, in place of a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"{program}: {error}")


def _is_under_torchrun() -> bool:
    return {"LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys() or "TORCHELASTIC_RUN_ID" in os.environ


def _run_torchrun_worker(
    main: Callable[[Any], Any], args: argparse.Namespace, timeout: timedelta
) -> Any:
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    with contextlib.suppress(AttributeError, OSError, TypeError):
        # a SIGTERM from Linux when torchrun dies, which its processes would outlive
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if args.num_gpus > 0:
        check_gpus(local_world)
        torch.cuda.set_device(local_rank)
    backend = "nccl" if args.num_gpus > 0 else "gloo"
    store, rank, world = next(torch.distributed.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's store still has the addresses of the processes before a restart (torch 2.14,
        # 2.15); over several machines TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps instead
        count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = torch.distributed.PrefixStore(f"restart_{count}", store)
    group = {"store": store, "rank": rank, "world_size": world, "timeout": timeout}
    torch.distributed.init_process_group(backend, **group)
    create_local_process_group(local_world)
    comm.synchronize()
    try:
        return main(args)
    finally:
        # after an error it would wait for processes that wait for this one
        if not isinstance(sys.exc_info()[1], Exception):
            torch.distributed.destroy_process_group()


def _run_and_forward_signals(start: Callable[[], Any]) -> Any:
    """Run Detectron2's launcher, pass signals on to its processes, and end with their code."""

    def forward(number: int, frame: Any) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        return start()
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == 1 or error.exit_code - 128 in SIGNALS:  # 1: it has said why
            sys.exit(error.exit_code)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def num_processes(args: argparse.Namespace) -> int:
    """How many training processes the flags or torchrun ask for; see :func:`check_gpus`."""
    if _is_under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    check_gpus(args.num_gpus)
    return max(1, args.num_gpus) * args.num_machines


def launch(main: Callable[[Any], Any], args: argparse.Namespace, timeout: float = 1800) -> Any:
    """Run `main(args)` on as many processes as the flags or torchrun ask for.

    One process is this one. With `--num-gpus 0` it runs on the CPU, as does every process of
    torchrun, which then talk by gloo. Under torchrun any other value means one GPU a process.

    Args:
        timeout: seconds that a process waits for the others; by default Detectron2's half hour,
            since one process may evaluate while the others wait.

    Raises:
        RuntimeError: too few GPUs; or several CPU machines without torchrun.
    """
    wait = timedelta(seconds=timeout)
    if _is_under_torchrun():
        return record(_run_torchrun_worker)(main, args, wait)
    check_gpus(args.num_gpus)
    if args.num_gpus == 0 and args.num_machines > 1:
        raise RuntimeError("Several CPU machines start with torchrun, not --num-machines.")
    if max(args.num_gpus, 1) * args.num_machines == 1:
        return main(args)
    return _run_and_forward_signals(
        lambda: detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
            timeout=wait,
        )
    )
