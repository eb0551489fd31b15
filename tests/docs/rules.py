"""How a command of the documentation is run here: for real where two CPU cores allow, scaled down.

`python -m tests.docs.rules COMMAND ...` runs one in its page's folder. One without a rule fails.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.distributed.run
from detectron2.config import CfgNode, LazyConfig, instantiate
from packaging.requirements import Requirement

from ..conftest import NARROW, R18, ROOT, TINY

# Options that a machine without GPUs, without other machines and without days cannot take.
# option: what it becomes at most (None: it goes, with its value)
OPTIONS = {
    "--num-gpus": "0",
    "--num-machines": None,
    "--machine-rank": None,
    "--dist-url": None,
    "--seeds": "1",
    "--batch": "2",
    "--num-images": "8",
    "--repeats": "1",
    "--max-iter": "2",
    "--epochs": "2",
}
# ResNet-18 stands in for ResNet-50. C4 detectors, which cannot use it, get a narrow ResNet-50 and
# no weights.
C4 = [*NARROW, "MODEL.WEIGHTS", ""]
PRETRAIN = [
    *TINY,
    *R18,
    *["INPUT.DETCO.GLOBAL_SIZE", 32, "INPUT.DETCO.LOCAL_SIZE", 48, "INPUT.DETCO.PATCH_SIZE", 16],
    *["SOLVER.MAX_EPOCHS", 0, "SOLVER.MAX_ITER", 3, "SOLVER.KEEP_CHECKPOINTS", 2],
    *["SOLVER.AMP.ENABLED", False],
]
TRAIN = [
    *["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", 160, "INPUT.CROP.SIZE", "[64,64]"],
    *["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160, "SOLVER.IMS_PER_BATCH", 2],
    *[
        "MODEL.FPN.OUT_CHANNELS",
        16,
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        16,
        "MODEL.RETINANET.NUM_CONVS",
        1,
    ],
    *["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20],
    *["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "SOLVER.BASE_LR", 0.0001],
    *["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "TEST.PRECISE_BN.ENABLED", False],
    *["DATALOADER.NUM_WORKERS", 0, "SOLVER.AMP.ENABLED", False],
]
SLURM = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1"}


def _value(words: list[str], option: str, default: str = "") -> str:
    return words[words.index(option) + 1] if option in words else default


def _with_options(words: list[str]) -> list[str]:
    """The command line with the values of OPTIONS."""
    result: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in OPTIONS:
            skip, most = True, OPTIONS[word]
            value = words[words.index(word) + 1]
            result += [] if most is None else [word, min(value, most, key=int)]
        else:
            result.append(word)
    return result


def _benchmark(words: list[str]) -> list[str]:
    """One cell is run of all that are planned; scenes are few."""
    split = words.index("--opts") if "--opts" in words else len(words)
    words, opts = words[:split], words[split + 1 :]
    suite = _value(words, "--suite")
    if suite == "quick" and "--voc" not in words:
        scenes = Path(_value(words, "--output", "output/benchmark"), "scenes")
        shutil.copytree(Path(os.environ["PLANTED"], "few_scenes"), scenes, dirs_exist_ok=True)
    if "--shard" in words:
        words[words.index("--shard") + 1] = "0/9999"
    else:
        words += ["--shard", "0/9999"]
    backbone = C4 if suite == "paper" else R18  # whose first cell is a C4 at random
    return [*words, "--opts", *opts, *_strings(TRAIN + backbone)]


def _strings(values: list[object]) -> list[str]:
    return [str(value) for value in values]


def scaled(script: str, words: list[str]) -> list[str]:
    """What is run instead of the arguments of one of the project's scripts."""
    words = _with_options(words)
    config = _value(words, "--config-file")
    if script == "pretrain_net.py":
        return [*words, *_strings(PRETRAIN)]
    if script == "train_net.py":
        return [*words, *_strings(TRAIN + (C4 if "C4" in config else R18))]
    if script == "tools/benchmark.py":
        return _benchmark(words)
    if script == "tools/benchmark_speed.py":
        return ["--repeats", "1", *words, *_strings(PRETRAIN)]
    if script == "tools/probe.py":
        few = ["--size", "48", "--stages", "res5", "--max-images", "40", "--workers", "0"]
        return [*words, *few]
    if Path(ROOT, script).is_file():  # runs as it stands, on few and small images
        return words
    sys.exit(f"no rule for python {script}")


def _few_scenes(words: list[str]) -> list[str]:
    """Eight rendered scenes where hundreds are asked for."""
    return [re.sub(r"scenes_([a-z]+)_\d+@", r"scenes_\1_8@", word) for word in words]


def module(words: list[str]) -> None:
    """`python -m`: pip, an environment that the page must not enter, or what a test runs."""
    if words[0] == "pip":
        return _pip(words[1:])
    if words[0] == "venv":
        os.execv(sys.executable, [sys.executable, "-m", "venv", "--without-pip", "made_venv"])
    if words[0] == "pytest":
        files = [word for word in words[1:] if word.startswith("tests")]
        assert files and all(Path(ROOT, file).exists() for file in files), words
        return None
    # These take minutes: a slow test of test_docs.py runs them, shorter.
    if words[0] in ("tests.faults.soak", "tests.faults.saver"):
        assert Path(ROOT, *words[0].split(".")).with_suffix(".py").is_file()
        assert words[2].isdigit() and len(words) >= 3, words
        return None
    sys.exit(f"no rule for python -m {words[0]}")


def _lazy(words: list[str]) -> None:
    """The model of a LazyConfig; Detectron2's trainer of these is not in its package."""
    config = LazyConfig.load(_value(words, "--config-file"))
    start = words.index("--num-gpus") + 2 if "--num-gpus" in words else 2
    config = LazyConfig.apply_overrides(config, words[start:])
    instantiate(config.model)


def _load_small_configs() -> None:
    """What a page's Python loads is scaled down like what its commands do."""
    from detco_d2 import config

    load = config.load_config

    def load_small(file: str, settings: Sequence[Any] = ()) -> CfgNode:
        is_pretraining = load(file, settings).MODEL.META_ARCHITECTURE == "DetCo"
        small = PRETRAIN if is_pretraining else TRAIN + (C4 if "C4" in file else R18)
        return load(file, [*settings, *_strings(small)])

    config.load_config = load_small


def _python(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c"]
        _load_small_configs()
        exec(compile(words[1], "<docs>", "exec"), {"__name__": "__main__"})
        return
    if words[0] == "-m":
        return module(words[1:])
    if os.path.basename(words[0]) == "lazyconfig_train_net.py":
        return _lazy(words[1:])
    script = words[0]
    words = _few_scenes(scaled(script, words[1:]))
    if "WANDB.PROJECT" in words and find_spec("wandb") is None:
        words += ["WANDB.PROJECT", ""]
    print("runs:", script, *words, file=sys.stderr, flush=True)
    sys.path[0:0] = [ROOT, os.path.join(ROOT, os.path.dirname(script))]
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def _torchrun(words: list[str]) -> None:
    """At most two processes of this machine."""
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    count = min(2, int(_value(words[:script], "--nproc-per-node", "1")))
    arguments = _few_scenes(scaled(words[script], words[script + 1 :]))
    command = ["--standalone", "--nproc-per-node", str(count), words[script], *arguments]
    print("runs: torchrun", *command, file=sys.stderr, flush=True)
    os.environ["PYTHONPATH"] = ROOT
    torch.distributed.run.main(command)


def check_pip(words: list[str]) -> bool:
    """Every requirement must be one that the set-up script or setup.py names.

    Returns:
        whether this project itself is to be installed.
    """
    assert words[0] == "install", f"no rule for pip {words[0]}"
    known = "\n".join(file.read_text() for file in sorted(Path(ROOT, "requirements").iterdir()))
    known += Path(ROOT, "setup.py").read_text() + Path(ROOT, "tools/setup_env.py").read_text()
    asked, editable = [], False
    for i, word in enumerate(words[1:], start=1):
        if words[i - 1] == "-e":
            editable = True
            assert re.fullmatch(r"\.(\[[\w,]+\])?", word), word
            for extra in re.findall(r"\w+", word):
                assert f'"{extra}":' in known, f"setup.py has no extra {extra}"
        elif word.startswith("git+"):
            address, _, commit = word.removeprefix("git+").partition("@")
            assert address in known and commit in known, f"not what set-up installs: {word}"
        elif not word.startswith("-") and words[i - 1] not in ("--index-url", "--extra-index-url"):
            asked.append(Requirement(word).name)
    missing = [
        name
        for name in asked
        if not re.search(rf"""^{re.escape(name)}\b|"{re.escape(name)}["<>=]""", known, re.M)
    ]
    assert not missing, f"neither setup.py nor requirements/ knows {missing}"
    return editable


def _pip(words: list[str]) -> None:
    """Nothing is fetched; `-e .` is prepared, but not installed."""
    if check_pip(words):
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index"]
        os.execv(sys.executable, [*command, "--no-build-isolation", "-e", "."])


def _sbatch(words: list[str]) -> None:
    """The job script itself, on this machine as the only node."""
    script = next(i for i, word in enumerate(words) if word.endswith(".sh"))
    environment = {**os.environ, **SLURM, "SLURM_GPUS_ON_NODE": "1"}
    done = subprocess.run(["bash", *words[script:]], env=environment)
    sys.exit(done.returncode)


def execute(words: list[str]) -> None:
    """Run one command; raises SystemExit with the code that it would end with."""
    program, arguments = words[0], words[1:]
    if program in ("python", "python3"):
        _python(arguments)
    elif program == "torchrun":
        _torchrun(arguments)
    elif program == "pip":
        _pip(arguments)
    elif program == "make":  # the demo and the tests are too long for a test, and run by others
        shutil_make = shutil.which("make", path="/usr/bin:/bin:/usr/local/bin")
        assert shutil_make, "make is not installed"
        os.execv(shutil_make, ["make", "-n", *arguments])
    elif program == "tensorboard":  # reads the files, without staying as a server
        arguments = [word for word in arguments if not word.startswith("--port")]
        command = [sys.executable, "-m", "tensorboard.main", *arguments, "--inspect"]
        os.execv(sys.executable, command)
    elif program == "sbatch":
        _sbatch(arguments)
    elif program == "srun":
        os.execvp(arguments[0], arguments)
    elif program == "wandb":
        assert arguments[0] == "sync", "no rule for wandb, which needs an account and a network"
    elif program == "chromium":  # takes a picture of a page; the page is there
        (page,) = [word for word in arguments if word.startswith("file://")]
        assert Path(page.removeprefix("file://")).is_file(), page
    elif program == "scontrol":
        print("localhost")
    else:
        sys.exit(f"no rule for {program}")


if __name__ == "__main__":
    execute(sys.argv[1:])
