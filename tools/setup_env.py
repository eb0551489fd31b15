#!/usr/bin/env python3
"""Make a virtual environment with everything; called by the Makefile, and safe to call again.

Detectron2 comes from the first of these that is there:
  1. DETECTRON2_SOURCE, a folder or a git URL, if that variable is set;
  2. the Python that runs this script, if torch, torchvision and detectron2 import there;
  3. its GitHub repository, at the commit that was tested;
  4. the package index's copy of version 0.5, which lacks the C++ extension (only rotated boxes,
     deformable convolution and the fast COCO evaluator need that) and wants Python 3.10 or 3.11.
"""

from __future__ import annotations  # so that an old Python gets as far as the message

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

UPSTREAM = "https://github.com/facebookresearch/detectron2"
UPSTREAM_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
INDEX_COPY = "detectron2-cdo==0.5"
REQUIREMENTS = ROOT / "requirements"  # the versions that were tested together

# In place of the C++ extension, which the index's copy was published without.
EXTENSION_STUB = """
get_compiler_version = get_cuda_version = lambda: "not built"
has_cuda = lambda: False
"""

CHECK = (
    "import torch, torchvision, detectron2, cv2, pycocotools.mask, fvcore, shapely;"
    "torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5);"
    "print('torch', torch.__version__, '| torchvision', torchvision.__version__,"
    "'| detectron2', detectron2.__version__)"
)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(*command: str) -> None:
    if subprocess.run(command).returncode:
        sys.exit(f"setup: this failed, see above: {' '.join(command)}")


def requirements(*names: str) -> list[str]:
    """Arguments of pip: what these files of requirements/ list."""
    return [word for name in names for word in ("-r", str(REQUIREMENTS / f"{name}.txt"))]


def python_version(python: str) -> tuple[int, int] | None:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        output = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
        major, minor = output.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def find_python_for_index_copy() -> str:
    """A Python 3.11 or 3.10: this one, one on the PATH, or one of pyenv's."""
    candidates = [sys.executable]
    for version in ("3.11", "3.10"):
        candidates.append(shutil.which(f"python{version}") or "")
        candidates += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in candidates:
        if candidate and python_version(candidate) in [(3, 10), (3, 11)]:
            return candidate
    sys.exit(
        "setup: the package index's copy of Detectron2 wants Python 3.10 or 3.11, and none was "
        "found. Install one (for example: apt install python3.11 python3.11-venv), or make "
        f"{UPSTREAM} reachable, or set DETECTRON2_SOURCE to a checkout of it."
    )


def existing_site_packages() -> list[str]:
    """Where this Python keeps its packages, if Detectron2 works in it; else nothing."""
    code = "import sys, torch, torchvision, detectron2; print(*sys.path[1:], sep='\\n')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    if result.returncode:
        return []
    return [line for line in result.stdout.splitlines() if line.endswith("-packages")]


def choose_source() -> tuple[str, str, str]:
    """(kind, location, why) of the Detectron2 to install."""
    source = os.environ.get("DETECTRON2_SOURCE", "")
    if Path(source).is_dir() and source:
        return "source", str(Path(source).resolve()), "DETECTRON2_SOURCE names this folder"
    if source:
        url = f"git+{source.removeprefix('git+')}"
        return "source", url, "DETECTRON2_SOURCE names this repository"
    if folders := existing_site_packages():
        return "existing", "\n".join(folders), f"{sys.executable} has it"
    try:
        command = ["git", "ls-remote", UPSTREAM, "HEAD"]
        quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        probe = subprocess.run(command, capture_output=True, text=True, timeout=30, env=quiet)
        if probe.returncode == 0:
            return "source", f"git+{UPSTREAM}@{UPSTREAM_COMMIT}", "its repository is reachable"
        reason = (probe.stderr.strip() or "no answer").splitlines()[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return "index", INDEX_COPY, f"{UPSTREAM} cannot be reached ({reason})"


def install_index_copy(python: str) -> None:
    # pip refuses this file for an extra that is a URL; uv, told to skip the C++ build, takes it,
    # and like pip it shall trust whom the machine trusts.
    install = "uv --system-certs pip install --no-deps --no-build-isolation"
    skip = "--config-setting=--global-option=build_py --config-setting=--build-option=--skip-build"
    run(python, "-m", *install.split(), *skip.split(), "--python", python, INDEX_COPY)
    code = "import importlib.util as u; print(u.find_spec('detectron2').origin)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    Path(found.stdout.strip()).with_name("_C.py").write_text(EXTENSION_STUB)


def make_venv(base_python: str, venv: Path) -> str:
    python = str(venv / "bin" / "python")
    if python_version(python) == python_version(base_python):
        return python
    if subprocess.run([base_python, "-m", "venv", "--clear", str(venv)]).returncode:
        sys.exit(
            f"setup: {base_python} cannot make a virtual environment. On Debian and Ubuntu: "
            "apt install python3-venv"
        )
    return python


def install(kind: str, location: str, venv: Path) -> None:
    base_python = find_python_for_index_copy() if kind == "index" else sys.executable
    say(f"virtual environment {venv} of {base_python} (seconds)")
    python = make_venv(base_python, venv)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    if kind == "existing":
        packages = next((venv / "lib").glob("python*/site-packages"))
        (packages / "existing.pth").write_text(f"{location}\n")
        say("packages that may be missing beside it (seconds)")
        run(*pip, "opencv-python", "pycocotools", "setuptools<81", "wheel")
        run(*pip, *requirements("tools"), "scikit-learn", "safetensors")
    else:
        say("torch and torchvision, about 3 GB (1 to 10 minutes)")
        run(*pip, *requirements("torch"))
        say("other packages (1 minute)")
        beside = "index_copy" if kind == "index" else "upstream"
        run(*pip, *requirements("common", beside, "tools"))
        say(f"Detectron2 ({'seconds' if kind == 'index' else '2 to 5 minutes, C++'})")
        if kind == "index":
            install_index_copy(python)
        else:
            os.environ["MAX_JOBS"] = "2"
            run(*pip, "--no-build-isolation", location)
    run(*pip, "--no-deps", *requirements("alone"))
    say("this project (seconds)")
    run(*pip, "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if subprocess.run([python, "-W", "ignore", "-c", CHECK]).returncode:
        sys.exit(
            "setup: the packages above do not work together. torch and torchvision must be a pair "
            "(requirements/torch.txt), both from the same index (no `+cpu` build beside an "
            f"ordinary one). Remove {venv} and the variable that brought another one in, and run "
            "again."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv")
    venv = Path(parser.parse_args().venv).absolute()
    if sys.version_info < (3, 10):
        sys.exit(f"setup: Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
    key = hashlib.sha256(os.environ.get("DETECTRON2_SOURCE", "").encode())
    for file in (Path(__file__), ROOT / "setup.py", *sorted(REQUIREMENTS.glob("*.txt"))):
        key.update(file.read_bytes())
    stamp = venv / "detco_d2_setup"
    if stamp.is_file() and stamp.read_text() == key.hexdigest():
        return
    kind, location, why = choose_source()
    say(f"Detectron2 from {location}, since {why}")
    install(kind, location, venv)
    stamp.write_text(key.hexdigest())
    say("done")


if __name__ == "__main__":
    main()
