"""Python processes that start at once: forks of a server that has imported everything.

`Process` and `run` take a command line that begins with sys.executable, as subprocess does, and
`CLIENT` is a program that does so for a shell. The process is a real one: its id, its signals, its
command line in /proc, its exit code and what it says are those of an interpreter of its own. What
it starts by `subprocess` with sys.executable, as torchrun and tools/benchmark.py do, is a fork too.

`python -m tests.warm SOCKET` serves.
"""

import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import logging
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

CLIENT = """#!{python} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
words = [{python!r}, *{start!r}, *sys.argv[1:]]
message = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(message)
answers = connection.makefile("rb")
answers.readline()
code = int(answers.readline() or 70)
sys.exit(code if code >= 0 else 128 - code)
"""


class Process:
    """What subprocess.Popen offers, of a process with a session of its own."""

    def __init__(
        self, words: Sequence[str], cwd: str, env: dict[str, str], stdout: IO, stderr: IO
    ) -> None:
        self.args, self.returncode = words, None
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(server())
        message = json.dumps([list(words), str(cwd), env]).encode()
        files = [stdout.fileno(), stderr.fileno()]
        with open(os.devnull) as nothing:
            length = len(message).to_bytes(4, "big")
            socket.send_fds(connection, [length], [nothing.fileno(), *files])
        connection.sendall(message)
        self.answers = connection.makefile("rb", buffering=0)
        self.pid = int(self.answers.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            self.returncode = int(self.answers.readline())
            self.answers.close()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run(
    words: Sequence[str],
    cwd: str | os.PathLike = ROOT,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """What subprocess.run gives with capture_output and text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else env
        process = Process(words, os.fspath(cwd), environment, out, err)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, process.returncode, *said)


@functools.cache
def server() -> str:
    """The socket of this session's server, which is started by the first call."""
    folder = tempfile.mkdtemp(prefix="warm")
    path, log = os.path.join(folder, "socket"), os.path.join(folder, "log")
    paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.warm", path, "-" * 8000],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    @atexit.register
    def stop() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    end = time.monotonic() + 120
    while not os.path.exists(path):
        assert process.poll() is None and time.monotonic() < end, Path(log).read_text()
        time.sleep(0.05)
    return path


# What follows runs in the server and in its forks.

_fork_exec = getattr(subprocess, "_fork_exec", None)  # of a Python that has no such name: no forks
_handlers: dict[str, tuple[list[logging.Handler], int]] = {}


def _loggers() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict
    named = {name: log for name, log in known.items() if isinstance(log, logging.Logger)}
    return {"": logging.root, **named}


def _fork_instead(args: Sequence, executables: object, *rest: Any) -> int:
    """Stands in for subprocess's own start of a program, and takes the same arguments."""
    words = [os.fsdecode(word) for word in args]
    if words[0] != sys.executable:
        return _fork_exec(args, executables, *rest)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _become(words, *rest)
        finally:
            os._exit(70)
    return pid


def _become(
    words: list[str], _: bool, kept: tuple[int, ...], cwd: Any, env: Any, *rest: Any
) -> NoReturn:
    """Runs a command line in a fork as if an interpreter had just been started with it."""
    stdin, _, _, stdout, _, stderr, _, errors, _, new_session = rest[:10]
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        if descriptor != -1:
            os.dup2(descriptor, number)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and (descriptor == errors or descriptor not in kept):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    if cwd is not None:
        os.chdir(cwd)
    if new_session:
        os.setsid()
    if env is not None:
        os.environ.clear()
        os.environ.update(os.fsdecode(pair).split("=", 1) for pair in env)
    _set_command_line(words)
    _forget_the_parent()
    _end(lambda: _run(words[1:]))


def _set_command_line(words: list[str]) -> None:
    """Writes over the padded one of the server, so that /proc tells what runs here."""
    first, last = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    ctypes.memmove(first, text[: last - first - 1].ljust(last - first, b"\0"), last - first)


def _forget_the_parent() -> None:
    """What a process inherits by a fork, but not by the start of a program."""
    import numpy
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import builtin
    from detectron2.utils import logger

    from detco_d2.data import datasets

    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            is_int = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)
    for name, log in _loggers().items():
        log.handlers[:], level = _handlers.get(name, ([], logging.NOTSET))
        log.setLevel(level)
    logger.setup_logger.cache_clear()
    logger._cached_log_stream.cache_clear()
    DatasetCatalog.clear()
    MetadataCatalog.clear()
    for module in (builtin, datasets):
        importlib.reload(module)  # registers the data below this process's DETECTRON2_DATASETS
    numpy.random.seed()
    atexit._clear()
    weakref.finalize._registry.clear()
    multiprocessing.util._finalizer_registry.clear()
    multiprocessing.process._children.clear()
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)


def _run(words: list[str]) -> None:
    while words[0] not in ("-m", "-c") and words[0].startswith("-"):
        if words[0] == "-u":
            sys.stdout.reconfigure(write_through=True)
        words = words[1 + (words[0] == "-W") :]
    kind, code = words[0], words[1] if len(words) > 1 else ""
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv, sys.path[0] = [code, *words[2:]], os.getcwd()
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


def _end(work: Callable[[], None]) -> NoReturn:
    """Does the work, and ends the process as an interpreter would."""
    code = 0
    try:
        work()
    except SystemExit as error:
        is_text = not isinstance(error.code, int | None)
        if is_text:
            print(error.code, file=sys.stderr)
        code = 1 if is_text else error.code or 0
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _serve_one(connection: socket.socket) -> None:
    """Starts the command of a client, tells its process id, and at its end its exit code."""
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    length, message = int.from_bytes(head, "big"), b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    words, cwd, env = json.loads(message)
    streams = dict(zip(("stdin", "stdout", "stderr"), files))
    process = subprocess.Popen(words, cwd=cwd, env=env, start_new_session=True, **streams)
    connection.sendall(b"%d\n" % process.pid)
    connection.sendall(b"%d\n" % process.wait())


def serve(path: str) -> NoReturn:
    for name in ("detectron2.engine", "pycocotools.mask", "torch.distributed.run"):
        importlib.import_module(name)
    for name in ("pretrain", "transfer"):
        importlib.import_module(f"detco_d2.engine.{name}")
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost by a fork"
    _handlers.update({name: (log.handlers[:], log.level) for name, log in _loggers().items()})
    if _fork_exec:
        subprocess._fork_exec = _fork_instead
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the tests
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # what clients wait for: they find it when it answers
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            with contextlib.suppress(BrokenPipeError):  # the client has gone
                _serve_one(connection)
            os._exit(0)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    serve(sys.argv[1])
