"""Checkpoints under kills, damage and full disks."""

import json
import os
import shutil
import subprocess
import sys
import types

import pytest
import torch

from detco_d2.engine.hooks import CheckpointHook
from detco_d2.weights.saving import DurableCheckpointer, find_checkpoints, newest_intact

from .. import warm
from .harness import command, finish
from .saver import save


def resume(folder, size=50):
    model = torch.nn.Linear(size, size)
    extra = DurableCheckpointer(model, str(folder)).resume_or_load("", resume=True)
    assert bool((model.weight == extra["iteration"]).all())
    return extra["iteration"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "kills, saves, half_written", [(30, 7, 1), pytest.param(200, 100, 20, marks=pytest.mark.slow)]
)
def test_kills_lose_no_save_that_had_returned(tmp_path, kills, saves, half_written):
    done = warm.run([sys.executable, "-m", "tests.faults.saver", str(tmp_path), str(kills), "1"])
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["kills"] == kills and result["saves"] > saves
    assert result["half_written"] > half_written  # or the kills would not have met a save
    assert (result["lost"], result["wrong"]) == (0, 0)
    assert result["files"] == 7  # three checkpoints, their checksums, and the pointer


def test_a_checksum_stands_beside_in_the_form_of_sha256sum(tmp_path):
    save(tmp_path, 1, 2)
    words = ["sha256sum", "--check", "--strict", "model_0000001.pth.sha256"]
    assert subprocess.check_output(words, cwd=tmp_path, text=True) == "model_0000001.pth: OK\n"


def test_the_newest_few_are_kept_also_across_restarts_and_leftovers_are_cleaned(tmp_path):
    save(tmp_path, 1, 2, 3)
    (tmp_path / f".model_0000004.pth.{'0' * 32}").write_bytes(b"half")
    (tmp_path / "model_0000000.pth.sha256").write_text("an orphan")
    (tmp_path / "notes.txt").write_text("the user's")
    save(tmp_path, 4, keep=2)
    kept = [f"model_000000{i}.pth{end}" for i in (3, 4) for end in ("", ".sha256")]
    assert names(tmp_path) == ["last_checkpoint", *kept, "notes.txt"]


def damage(path, share):
    """Cut a file to a share of it; the whole of it gets a flipped bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "share, checksum", [(0.6, True), (1, True), (0, True), (0.6, False), (0, False)]
)
def test_a_damaged_newest_checkpoint_is_passed_over_loudly(tmp_path, caplog, share, checksum):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "model_0000003.pth", share)
    if not checksum:
        (tmp_path / "model_0000003.pth.sha256").unlink()
    assert resume(tmp_path) == 2
    assert "model_0000003.pth is damaged" in caplog.text and "trying an older one" in caplog.text


@pytest.mark.parametrize(
    "pointer, found",
    [("", 2), ("model_0000009.pth", 2), ("\x00\xff", 2), (None, 2), ("model_0000001.pth", 1)],
)
def test_a_pointer_is_followed_and_a_broken_one_means_the_newest(tmp_path, pointer, found):
    save(tmp_path, 1, 2)
    (tmp_path / "last_checkpoint").unlink()
    if pointer is not None:
        (tmp_path / "last_checkpoint").write_text(pointer, encoding="latin1")
    assert resume(tmp_path) == found


def test_a_checkpoint_without_checksum_such_as_detectron2s_own_is_accepted(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "model_0000001.pth.sha256").unlink()
    assert resume(tmp_path) == 1


def test_resuming_from_nothing_is_an_error_and_so_is_resuming_from_damage_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="it has no checkpoint"):
        resume(tmp_path)
    save(tmp_path, 1, 2)
    damage(tmp_path / "model_0000001.pth", 1)
    damage(tmp_path / "model_0000002.pth", 0.6)
    with pytest.raises(FileNotFoundError, match=r"all of \['model_0000002.pth', .* are damaged"):
        resume(tmp_path)
    assert len(find_checkpoints(tmp_path)) == 2  # nothing is removed


def test_a_checkpoint_of_another_model_is_refused_by_a_resume(tmp_path):
    save(tmp_path, 1, size=50)
    with pytest.raises(ValueError, match=r"of another model; 2 tensors .*'bias', 'weight'"):
        resume(tmp_path, size=60)


def test_overwriting_a_name_keeps_the_old_file_valid_until_the_new_one_is_there(tmp_path):
    save(tmp_path, 1)
    old = (tmp_path / "model_0000001.pth").read_bytes()
    save(tmp_path, 1)
    (tmp_path / "model_0000001.pth").write_bytes(old)  # a kill between checksum and rename
    assert newest_intact(tmp_path) == tmp_path / "model_0000001.pth"


def on_a_small_disk(megabytes, folder, words):
    """Run a command with a real file system of so many MB at a folder, and look at its end."""
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "-rm"]
    script = (
        f"mount -t tmpfs -o size={megabytes}m tmpfs {folder} || exit 77; "
        '"$@"; echo "exit code $?"; '
        f"cd {folder}; sha256sum --check *.sha256; ls -A"
    )
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    code, text = finish([*unshare, "sh", "-c", script, "sh", *words])
    if code == 77 or "Operation not permitted" in text:
        pytest.skip("needs the right to mount")
    return text


def test_a_full_disk_is_said_and_outlived_and_old_checkpoints_stay(scenes, tmp_path):
    settings = ["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 1]
    text = on_a_small_disk(11, tmp_path, command(f"{scenes}/train", tmp_path, *settings))
    assert "No checkpoint at iteration 2" in text and "Training goes on" in text
    assert "MB free; a checkpoint takes" in text and "Earlier ones are untouched" in text
    assert "exit code 1" in text and "RuntimeError: No checkpoint at iteration 4" in text
    assert text.count("model_0000000.pth: OK") == text.count("model_0000001.pth: OK") == 1
    end = text.rpartition("exit code")[2]
    assert "FAILED" not in end and ".model_" not in end


def test_so_many_failed_saves_in_a_row_end_the_run(tmp_path):
    class Full(DurableCheckpointer):
        failing = range(0)

        def save(self, name, **kwargs):
            if kwargs["iteration"] in self.failing:
                raise OSError("no space left")

    def run(failing):
        hook = CheckpointHook(Full(torch.nn.Linear(2, 2), str(tmp_path)), 2, max_failures=2)
        hook.checkpointer.failing = failing
        hook.trainer = types.SimpleNamespace(max_iter=20)
        hook.before_train()
        for hook.trainer.iter in range(20):
            hook.after_step()

    run([1, 3, 7, 9, 13])  # never three in a row
    with pytest.raises(RuntimeError, match="iteration 5: no space left.*MAX_FAILED_SAVES allows 2"):
        run([1, 3, 5])
    with pytest.raises(RuntimeError, match="iteration 19: no space left"):
        run([19])  # the last must succeed


def test_a_disk_without_room_for_one_checkpoint_is_refused_before_the_first_step(scenes, tmp_path):
    text = on_a_small_disk(3, tmp_path, command(f"{scenes}/train", tmp_path, "SOLVER.MAX_ITER", 5))
    assert "a checkpoint takes" in text and "Free space there" in text
    assert "exit code 1" in text and "model_" not in text.rpartition("exit code")[2]


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_process_starts(scenes):
    output = "/proc/detco_d2"
    code, text = finish(command(f"{scenes}/train", output, "SOLVER.MAX_ITER", 5))
    assert code == 1 and text.startswith(f"pretrain_net: OUTPUT_DIR '{output}' cannot be written")
