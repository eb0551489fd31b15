"""Runs commands for the tests of the documentation, each in a fork that has imported everything.

`python -m tests.docs.runner SOCKET` serves; `client()` is what stands in for `python` and the like.
"""

import json
import os
import signal
import socket
import struct
import sys
import traceback

CLIENT = """#!{python} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
message = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(message)
sys.exit(int(connection.recv(4).decode() or 70))
"""


def _receive(connection: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    (length,) = struct.unpack(">I", head)
    message = b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    words, folder, environment = json.loads(message)
    return words, folder, environment


def _execute(connection: socket.socket) -> int:
    from .rules import execute

    words, folder, environment = _receive(connection)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        execute(words)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve_one(connection: socket.socket) -> None:
    """In a fork: run the command in another one, which may replace itself, and send its code."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _execute(connection)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    print(f"{used.ru_utime + used.ru_stime:.1f} s of CPU", flush=True)  # in the server's log
    code = os.waitstatus_to_exitcode(status)
    connection.sendall(str(code if code >= 0 else 128 - code).encode())


def serve(path: str) -> None:
    import detectron2.engine  # noqa: F401
    import pycocotools.mask  # noqa: F401
    import torch

    import detco_d2.engine.pretrain
    import detco_d2.engine.transfer  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            _serve_one(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
