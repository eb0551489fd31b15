"""A fork of the warm server is, to a test, the interpreter that it stands in for."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from . import warm
from .faults.harness import descendants, processes_of, wait_for

ENDS = {
    "nothing": "print('said')",
    "a number": "import sys; print('said'); sys.exit(3)",
    "a number beyond a byte": "raise SystemExit(258)",
    "a sentence": "import sys; sys.exit('why')",
    "an error": "1 / 0",
    "an interrupt": "raise KeyboardInterrupt",
    "a signal": "import os; os.kill(os.getpid(), 9)",
    "an end without clean-up": "import os; print('lost'); os._exit(4)",
    "what it has registered": "import atexit; atexit.register(print, 'bye')",
    "a thread": "import threading as t; t.Timer(0.1, print, ['late']).start()",
    "a process of its own": (
        "import subprocess as s, sys; done = s.run([sys.executable, '-c', 'print(7); "
        "raise SystemExit(5)'], stdout=s.PIPE); print(done.returncode, done.stdout)"
    ),
    "its surroundings": "import os, sys; print(os.getcwd(), os.environ['MARK'], sys.argv[1:])",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_a_process_says_and_ends_with_what_an_interpreter_does(code, tmp_path):
    words = [sys.executable, "-W", "ignore", "-c", code, "--flag", "a b"]
    environment = {**os.environ, "MARK": "x=y"}
    ours = warm.run(words, cwd=tmp_path, env=environment)
    options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    theirs = subprocess.run(words, **options)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_it_is_a_process_with_a_session_that_is_found_by_its_command_line_and_can_be_killed():
    code = "import os, sys, time; os.fork(); print(sys.argv, flush=True); time.sleep(60)"
    with tempfile.TemporaryFile() as log:
        words = [sys.executable, "-c", code, "a-marker"]
        process = warm.Process(words, warm.ROOT, dict(os.environ), log, log)
        wait_for(lambda: os.fstat(log.fileno()).st_size > 30, timeout=20)
        assert process.poll() is None and os.getsid(process.pid) == process.pid
        family = [process.pid, *descendants(process.pid)]
        assert sorted(processes_of("a-marker")) == sorted(family) and len(family) == 2
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        wait_for(lambda: not processes_of("a-marker"), timeout=20)


def test_data_sets_are_registered_anew_below_the_folder_of_the_environment():
    code = "from detectron2.data import MetadataCatalog as m; import detco_d2;"
    code += "print(m.get('coco_2017_val').image_root, m.get('imagenet_val').image_root)"
    environment = {**os.environ, "DETECTRON2_DATASETS": "/elsewhere"}
    done = warm.run([sys.executable, "-c", code], env=environment)
    assert done.stdout.split() == ["/elsewhere/coco/val2017", "/elsewhere/imagenet/val"]
