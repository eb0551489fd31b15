"""Where a file comes from: the command and the versions that are written beside results."""

import importlib
import importlib.metadata
import platform
import shlex
import sys


def command_line() -> str:
    """What was typed to start this process, as a shell would take it again."""
    return shlex.join(["python", *sys.argv])


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    result = {"Python": platform.python_version()}
    for name in ("torch", "torchvision", "detectron2"):
        result[name] = importlib.import_module(name).__version__
    try:
        result["detco_d2"] = importlib.metadata.version("detco_d2")
    except importlib.metadata.PackageNotFoundError:
        result["detco_d2"] = "not installed"  # a checkout
    return result
