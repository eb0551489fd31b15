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
    for name in ("numpy", "Pillow", "scikit-learn", "detco_d2"):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "not installed"
    return result
