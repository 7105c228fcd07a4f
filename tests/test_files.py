"""Files that are whole, by several writers at a time."""

import argparse
import errno
import fcntl
import os
import threading

import pytest
from conftest import full_disk

from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import (
    LONGEST_NAME,
    hold_lock,
    is_json,
    read_json,
    short_name,
    unfinished,
    whole_file,
    write_text,
)


def test_several_writers_leave_one_whole_file(tmp_path):
    file = tmp_path / "new" / "file.json"
    texts = [f'["{letter * 100_000}"]' for letter in "abcd"]
    errors: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_text(file, text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not file.exists() or file.read_text() in texts
    assert not errors
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "file.json"
    write_text(file, "[1]")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\udc80")
    assert file.read_text() == "[1]"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_half_written_json_is_none(tmp_path):
    (tmp_path / "file.json").write_text('{"a": 1, "b')
    assert not is_json(tmp_path / "file.json")
    assert not is_json(tmp_path / "missing.json")


def test_what_is_unfinished_keeps_its_ending(tmp_path):
    assert unfinished(tmp_path / "table.csv") == tmp_path / "table.partial.csv"


def test_a_name_that_is_too_long_keeps_its_beginning_and_stays_unique(tmp_path):
    assert short_name("nnUNetTrainer__3d_fullres") == "nnUNetTrainer__3d_fullres"
    assert len(short_name("ü" * LONGEST_NAME).encode()) <= LONGEST_NAME, "file systems count bytes, not letters"
    long = ["nnUNetTrainer_ü" * 40 + ending for ending in "ab"]
    names = [short_name(name) for name in long]
    assert len(set(names)) == 2
    for name, whole in zip(names, long, strict=True):
        assert whole.startswith(name.rpartition("-")[0])
        write_text(unfinished(tmp_path / f"{name}.csv"), "")


SHAPE = {"name": str, "sizes": [int], "parts": {str: {"length?": (int, float)}}, "more?": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "sizes": [1], "parts": {"b": {"length": 1.5}}, "other": {}}', None),
        ('{"name": "a", "sizes": [], "parts": {}, "more": [1]}', None),
        ('{"name": "a", "sizes": [1, "2"], "parts": {}}', r"file.json: 'sizes'\[1\] has to be a whole number, not '2'"),
        ('{"name": "a", "sizes": [true], "parts": {}}', r"'sizes'\[0\] has to be a whole number, not True"),
        ('{"name": "a", "sizes": [1]}', "file.json: the content has no 'parts'"),
        ('{"name": "a", "sizes": 1, "parts": {}}', "'sizes' has to be a list, not 1"),
        (
            '{"name": "a", "sizes": [], "parts": {"b": {"length": "x"}}}',
            r"'parts'\['b'\]\['length'\] has to be a whole number or a number, not 'x'",
        ),
        ("[]", r"the content has to be an object, not \[\]"),
        ('{"name', "file.json is no JSON that can be read"),
        ("[" * 100_000, "file.json is no JSON that can be read"),
    ],
)
def test_json_of_others_is_as_it_has_to_be_or_the_place_is_named(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    if message is None:
        read_json(tmp_path / "file.json", SHAPE)
        return
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "file.json", SHAPE)


def test_a_disk_that_is_full_is_named(tmp_path):
    """Python names a file that cannot be opened, and none that cannot be written to; what was there before stays."""
    file = tmp_path / "page.html"
    write_text(file, "before")
    with full_disk(1000):
        with pytest.raises(OSError, match=r"File too large: .*page\.html"):
            write_text(file, "x" * 2000)
        with pytest.raises(OSError, match=r"File too large: .*page\.html"), whole_file(file) as part:
            part.write_text("x" * 2000)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_full_disk_comes_with_its_remedy(monkeypatch, capsys):
    def full(_: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "page.html")

    monkeypatch.setattr("nnunet_plugins.trainers.command_line._list", full)
    assert main(["list"]) == 2
    assert "No space left on device: 'page.html'; make room, and give the command again" in capsys.readouterr().err


def test_json_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json is missing"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("waits", [True, False])
def test_a_file_system_without_locks_keeps_nobody_waiting(tmp_path, monkeypatch, error, waits):
    def fail(*_: object) -> None:
        raise OSError(error, "no locks here")

    def wait() -> None:
        raise AssertionError("it would wait for ever")

    told: list[str] = []
    monkeypatch.setattr(fcntl, "flock", fail)
    with hold_lock(tmp_path / "lock", waiting=wait if waits else None, warn=told.append) as held:
        assert held
    assert told == [
        f"{tmp_path} is on a file system without locks (no locks here): nothing keeps another process from working "
        "there at the same time."
    ]
