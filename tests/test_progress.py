"""What a checkpoint keeps of a training, the choice of one, and the folder they lie in; no nnU-Net is needed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_plugins.trainers import fold_folder
from nnunet_plugins.trainers.fold_folder import FolderError, begin_run, only_training, run_of
from nnunet_plugins.trainers.progress import Candidate, Progress, choose, random_state

A, B, C = Path("a"), Path("b"), Path("c")


def test_progress_comes_back():
    before = Progress(run="one", losses=[0.5, 0.25], seconds=2.0, bad_steps=1, scaled_steps=1, random=random_state())
    state = before.to_state()
    before.losses.append(1.0)  # what was saved stays as it was
    after = Progress.from_state(state)
    assert (after.run, after.losses, after.seconds, after.bad_steps) == ("one", [0.5, 0.25], 2.0, 1)
    assert torch.equal(after.random["torch"], state["random"]["torch"])


def test_progress_of_other_versions():
    assert Progress.from_state({}) == Progress()
    assert Progress.from_state({"losses": [1.0], "seconds": 3.0, "bad_steps": 0}).run is None  # 0.1.0
    assert Progress.from_state({"run": "one", "invented_later": 1}) == Progress(run="one")


def test_the_furthest_is_chosen_and_of_equal_ones_the_first():
    assert choose([], None).path is None
    assert choose([Candidate(A, 3, 0), Candidate(B, 3, 5), Candidate(C, 2, 9)], None).path == B
    assert choose([Candidate(A, 3, 5), Candidate(B, 3, 5)], None).path == A


def test_a_run_that_was_given_up_is_left_out_and_told():
    found = [Candidate(A, 7, 0, run="given up"), Candidate(B, 0, 2, run="present")]
    choice = choose(found, "present")
    assert choice.path == B
    assert len(choice.warnings) == 1
    assert "a is of a training that was given up" in choice.warnings[0]
    assert choose(found, None).path == A
    # One of version 0.1.0, in a folder where a later version has begun anew.
    assert choose([Candidate(A, 7, 0)], "present").path is None


def test_damage_is_left_out_and_told_an_obstacle_refuses():
    choice = choose([Candidate(A, damage="a is torn"), Candidate(B, 1)], None)
    assert (choice.path, choice.refusal) == (B, None)
    assert choice.warnings == ("a is torn. It is left out; the next best checkpoint is taken.",)
    choice = choose([Candidate(A, 9), Candidate(B, obstacle="b: no such module")], None)
    assert (choice.path, choice.refusal) == (None, "b: no such module")


candidates = st.lists(
    st.builds(
        Candidate,
        st.sampled_from([A, B, C]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from([None, "one", "two"]),
        st.sampled_from([None, None, "torn"]),
        st.sampled_from([None, None, None, "no module"]),
    ),
    max_size=3,
    unique_by=lambda one: one.path,
)


@given(candidates, st.sampled_from([None, "one", "two"]))
def test_nothing_that_may_be_good_is_trained_over(found, run):
    choice = choose(found, run)
    assert (choice.refusal is None) == all(one.obstacle is None for one in found)
    own = [one for one in found if not one.damage and run in (None, one.run)]
    if choice.refusal is None:
        assert (choice.path is None) == (not own)
    if choice.path:
        (chosen,) = [one for one in own if one.path == choice.path]
        assert (chosen.epoch, chosen.steps) == max((one.epoch, one.steps) for one in own)


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """The folder of a training that is done."""
    for name in (
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "class_weights.json",
        "validation/summary.json",
        "progress.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / fold_folder.RUN_FILE).write_text(json.dumps({"run": "first"}))
    return tmp_path


def test_checkpoints_and_validation_are_moved_aside_together(fold):
    told: list[str] = []
    os.truncate(fold / "checkpoint_best.pth", 2 * 2**20)
    os.truncate(fold / "validation" / "summary.json", 3 * 2**20)
    run = begin_run(fold, told.append)
    assert run_of(fold) == run != "first"
    aside = fold / "earlier_1"
    assert sorted(path.name for path in fold.iterdir()) == ["earlier_1", fold_folder.RUN_FILE, "progress.png"]
    assert (aside / "checkpoint_final.pth").read_text() == "checkpoint_final.pth"
    assert (aside / "validation" / "summary.json").exists()
    assert run_of(aside) == "first"
    assert len(told) == 1
    assert f"moved to {aside}, 5 MiB: `rm -r '{aside}'` deletes it" in told[0]
    begin_run(fold, told.append)  # nothing is there by now
    assert len(told) == 1
    (fold / "checkpoint_latest.pth").touch()
    begin_run(fold, told.append)
    assert (fold / "earlier_2" / "checkpoint_latest.pth").exists()


def test_the_move_is_told_if_the_new_checkpoints_may_not_fit(fold, monkeypatch):
    told: list[str] = []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=10))
    begin_run(fold, told.append)
    assert "may not fit" in told[1]


class Killed(BaseException):
    """As by SIGKILL: nothing that would catch an error sees it."""


def contents(folder: Path) -> dict[str, str]:
    """What is in a folder's files, the names of runs as those of the fixture and of others."""
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {name: text if "run.json" not in name or "first" in text else "another run" for name, text in found.items()}


# Each way in which a file can come to its place; some of them make a folder, or sync it, in the same moment.
STEPS = ((Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "write_text"), (os, "fsync"))


@pytest.mark.parametrize("after", [False, True])
def test_a_move_that_is_killed_anywhere_is_completed_by_the_next_start(fold, tmp_path, after):
    whole, told = tmp_path.parent / f"{tmp_path.name} whole", []
    shutil.copytree(fold, whole)
    before = contents(whole)
    begin_run(whole, lambda _: None)
    expected = contents(whole)
    assert len(expected) == len(before) + 1

    def interrupt(folder: Path, at: int) -> int:
        """Begin a run, killed at a step; returns how many were taken."""
        taken = 0
        # Nothing cleans up after a killed process.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Path, "unlink", lambda *_, **__: None)
            for owner, name in STEPS:
                real = getattr(owner, name)

                def step(*arguments: object, real=real, **options: object) -> object:
                    nonlocal taken
                    taken += 1
                    if taken == at and not after:
                        raise Killed
                    result = real(*arguments, **options)
                    if taken == at:
                        raise Killed
                    return result

                patched.setattr(owner, name, step)
            with contextlib.suppress(Killed):
                begin_run(folder, lambda _: None)
        return taken

    for at in range(1, 100):
        folder = tmp_path.parent / f"{tmp_path.name} {at}"
        shutil.copytree(fold, folder)
        if interrupt(folder, at) < at:
            break
        left = [Candidate(folder / name, run="first") for name in fold_folder.CHECKPOINTS if (folder / name).exists()]
        # `--c` goes on with all of the earlier training, or none of it.
        assert len(left) == 2 or choose(left, run_of(folder)).path is None
        interrupt(folder, 3)
        run = begin_run(folder, told.append)
        assert run_of(folder) == run != "first"
        assert contents(folder) == expected
    assert len(told) > 5  # interrupted moves were completed


def test_what_cannot_be_moved_is_told_and_stays(fold, monkeypatch):
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "checkpoint_best.pth":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(FolderError, match="could not be moved aside"):
        begin_run(fold, print)
    assert (fold / "checkpoint_best.pth").exists()
    left = Candidate(fold / "checkpoint_best.pth", epoch=7, run="first")
    assert choose([left], run_of(fold)).path is None


def test_one_training_at_a_time_unless_its_starter_holds_the_lock(fold, monkeypatch):
    with only_training(fold, print):
        with pytest.raises(FolderError, match="another training is running in"), only_training(fold, print):
            pass
        monkeypatch.setenv(fold_folder.LOCK_IS_HELD, str(fold / fold_folder.LOCK))
        with only_training(fold, print):
            pass
        monkeypatch.setenv(fold_folder.LOCK_IS_HELD, str(fold.parent / "other" / fold_folder.LOCK))
        with pytest.raises(FolderError), only_training(fold, print):
            pass


def test_workers_that_outlive_a_killed_training_do_not_hold_its_lock(fold):
    """They load data, and do not notice that their parent is gone."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from nnunet_plugins.trainers.fold_folder import only_training\n"
        "with only_training(Path(sys.argv[1]), print):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(fold)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    with pytest.raises(FolderError), only_training(fold, print):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        with only_training(fold, print):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
