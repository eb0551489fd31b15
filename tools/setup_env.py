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
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

UPSTREAM = "https://github.com/facebookresearch/detectron2"
UPSTREAM_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
INDEX_COPY = "detectron2-cdo==0.5"
REQUIREMENTS = ROOT / "requirements"  # the versions that were tested together

EXTENSION_STUB = '''"""Stands in for the C++ extension, which this copy was published without."""


def get_compiler_version():
    return "not built"


def get_cuda_version():
    return "not built"


def has_cuda():
    return False
'''

CHECK = (
    "import torch, torchvision, detectron2, cv2, pycocotools.mask, fvcore, shapely;"
    "torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5);"
    "print('torch', torch.__version__, '| torchvision', torchvision.__version__,"
    "'| detectron2', detectron2.__version__)"
)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, env={**os.environ, **(env or {})})
    if result.returncode:
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
    wanted = [(3, 11), (3, 10)]
    candidates = [sys.executable]
    for major, minor in wanted:
        candidates.append(shutil.which(f"python{major}.{minor}") or "")
        versions = Path.home().glob(f".pyenv/versions/{major}.{minor}.*/bin/python")
        candidates += [str(path) for path in versions]
    for candidate in candidates:
        if candidate and python_version(candidate) in wanted:
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
    if source:
        if Path(source).is_dir():
            return "source", str(Path(source).resolve()), "DETECTRON2_SOURCE names this folder"
        url = source if source.startswith("git+") else f"git+{source}"
        return "source", url, "DETECTRON2_SOURCE names this repository"
    folders = existing_site_packages()
    if folders:
        return "existing", os.pathsep.join(folders), f"{sys.executable} has it"
    try:
        probe = subprocess.run(
            ["git", "ls-remote", UPSTREAM, "HEAD"],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        )
        reason = probe.stderr.strip().splitlines()[-1:] or ["no answer"]
        if probe.returncode == 0:
            return "source", f"git+{UPSTREAM}@{UPSTREAM_COMMIT}", "its repository is reachable"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = [str(error)]
    return "index", INDEX_COPY, f"{UPSTREAM} cannot be reached ({reason[0]})"


def install_index_copy(python: str) -> None:
    # pip refuses this file for an extra that is a URL; uv, told to skip the C++ build, takes it,
    # and like pip it shall trust whom the machine trusts.
    run(
        *[python, "-m", "uv", "--system-certs", "pip", "install", "--python", python, "--no-deps"],
        *["--no-build-isolation", "--config-setting=--global-option=build_py"],
        *["--config-setting=--build-option=--skip-build", INDEX_COPY],
    )
    code = "import importlib.util as u; print(u.find_spec('detectron2').origin)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    Path(found.stdout.strip()).with_name("_C.py").write_text(EXTENSION_STUB)


def make_venv(base_python: str, venv: Path) -> str:
    python = str(venv / "bin" / "python")
    if python_version(python) != python_version(base_python):
        result = subprocess.run([base_python, "-m", "venv", "--clear", str(venv)])
        if result.returncode:
            sys.exit(
                f"setup: {base_python} cannot make a virtual environment. On Debian and Ubuntu: "
                "apt install python3-venv"
            )
    return python


def install(kind: str, location: str, venv: Path) -> str:
    base_python = find_python_for_index_copy() if kind == "index" else sys.executable
    steps = 4 if kind == "existing" else 6
    say(f"[1/{steps}] virtual environment {venv} of {base_python} (seconds)")
    python = make_venv(base_python, venv)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    if kind == "existing":
        packages = next((venv / "lib").glob("python*/site-packages"))
        (packages / "existing.pth").write_text("\n".join(location.split(os.pathsep)) + "\n")
        say(f"[2/{steps}] packages that may be missing beside it (seconds)")
        run(*pip, "opencv-python", "pycocotools", "setuptools<81", "wheel")
        run(*pip, *requirements("tools"), "scikit-learn", "safetensors")
    else:
        say(f"[2/{steps}] torch and torchvision, about 3 GB (1 to 10 minutes)")
        run(*pip, *requirements("torch"))
        say(f"[3/{steps}] other packages (1 minute)")
        beside = "index_copy" if kind == "index" else "upstream"
        run(*pip, *requirements("common", beside, "tools"))
        say(f"[4/{steps}] Detectron2 ({'seconds' if kind == 'index' else '2 to 5 minutes, C++'})")
        if kind == "index":
            install_index_copy(python)
        else:
            run(*pip, "--no-build-isolation", location, env={"MAX_JOBS": "2"})
    run(*pip, "--no-deps", *requirements("alone"))
    say(f"[{steps - 1}/{steps}] this project (seconds)")
    run(*pip, "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    say(f"[{steps}/{steps}] check (seconds)")
    result = subprocess.run([python, "-W", "ignore", "-c", CHECK])
    if result.returncode:
        sys.exit(
            "setup: the packages above do not work together. torch and torchvision must be a pair "
            "(requirements/torch.txt), both from the same index (no `+cpu` build beside an "
            f"ordinary one). Remove {venv} and the variable that brought another one in, and run "
            "again."
        )
    return base_python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv")
    venv = Path(parser.parse_args().venv).absolute()
    if sys.version_info < (3, 10):
        sys.exit(f"setup: Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
    key = hashlib.sha256()
    for file in (Path(__file__), ROOT / "setup.py", *sorted(REQUIREMENTS.glob("*.txt"))):
        key.update(file.read_bytes())
    key.update(os.environ.get("DETECTRON2_SOURCE", "").encode())
    stamp = venv / "detco_d2_setup.json"
    if stamp.is_file():
        done = json.loads(stamp.read_text())
        if done["key"] == key.hexdigest():
            say(f"ready, with Detectron2 from {done['location']} ({done['why']})")
            return
    started = time.perf_counter()
    kind, location, why = choose_source()
    say(f"Detectron2 from {location}, since {why}")
    install(kind, location, venv)
    record = {"key": key.hexdigest(), "location": location, "why": why}
    stamp.write_text(json.dumps(record))
    say(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
