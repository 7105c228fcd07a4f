"""Files that are there completely or not at all, and locks."""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

LONGEST_NAME = 180
"""Bytes; most file systems take 255, and `unfinished` and the endings need some."""


def short_name(name: str) -> str:
    """Return a name for a file; if it is too long for file systems, with endings, it becomes a beginning and a hash."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def unfinished(path: Path) -> Path:
    """Return where to make something that is to be at `path` only when it is complete; the ending stays as it is."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file that then is at `path` completely or not at all, also if the power fails.

    Until it is complete, the file that was at `path` before stays there. Nothing is left of one that fails.
    """
    part = unfinished(path)
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_json(path: Path) -> bool:
    """Tell whether the file is there and was written to its end."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file that is there either completely or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because two processes may write at a time.
    part = unfinished(path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"))
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_lock(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a lock that other processes respect, as long as this process lives.

    Args:
        path: the lock's file.
        waiting: called once if another process has the lock, which is then waited for. None: do not wait.

    Yields:
        whether the lock is held.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if waiting is None:
                    yield False
                    return
                if not told:
                    waiting()
                    told = True
                time.sleep(1)
        yield True
