"""Files that are there completely or not at all, JSON files of others, and locks."""

import contextlib
import hashlib
import json
import os
import pickle
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nnunet_plugins.errors import InputError

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
        with _named(path):
            yield part
            _sync(part)
            part.replace(path)
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of writing, as on a full disk, say where."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


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
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def read_json(file: Path, shape: Any = None) -> Any:
    """Read a JSON file that others may have written or edited.

    Args:
        file: to read.
        shape: what its content has to look like: a type, or a tuple of them; `[shape]` for a list; `{type: shape}` for
            an object with any keys; `{"key": shape, "other?": shape}` for one with these keys, the other one if it is
            there, and perhaps more. None for anything.

    Raises:
        InputError: naming the file, and what in it is not as it has to be.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON that can be read: {error}") from error
    if fault := find_fault(content, shape):
        raise InputError(f"{file}: {fault}")
    return content


class _OnlyData(pickle.Unpickler):
    """Takes numbers and texts, and runs nothing that a file names but numpy's own makers of numbers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("scalar", "dtype", "ndarray", "_reconstruct", "_frombuffer"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_data(file: Path) -> Any:
    """Read a pickle that holds numbers, texts, arrays and containers of them, such as nnU-Net's properties of a case.

    Raises:
        Exception: of many kinds, if it holds anything else, or is broken.
    """
    with file.open("rb") as stream:
        return _OnlyData(stream).load()


def json_or_nothing(file: Path, shape: Any = dict) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if that is not there, cannot be read, or is of another shape."""
    try:
        return dict(read_json(file, shape))
    except InputError:
        return {}


def find_fault(value: Any, shape: Any, place: str = "") -> str | None:
    """Return the first place where a value does not have the shape (see `read_json`), and what it should be there.

    Args:
        value: to look at.
        shape: what it has to look like.
        place: what to call the value; nothing for the whole of it.
    """
    if shape is None:
        return None
    whole = place or "the content"
    if isinstance(shape, (type, tuple)):
        types = shape if isinstance(shape, tuple) else (shape,)
        # JSON's true is no number, Python's is.
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        names = " or ".join(_NAMES.get(kind, f"a {kind.__name__}") for kind in types)
        return None if fits else f"{whole} has to be {names}, not {_shorten(value)}"
    if not isinstance(value, type(shape)):
        return f"{whole} has to be {_NAMES[type(shape)]}, not {_shorten(value)}"
    if isinstance(shape, list):
        parts = [(f"{place}[{number}]", part, shape[0]) for number, part in enumerate(value)]
    elif str in shape:
        parts = [(_inside(place, key), part, shape[str]) for key, part in value.items()]
    else:
        if missing := [key for key in shape if not key.endswith("?") and key not in value]:
            return f"{whole} has no {missing[0]!r}"
        known = {key: wanted for name, wanted in shape.items() if (key := name.rstrip("?")) in value}
        parts = [(_inside(place, key), value[key], wanted) for key, wanted in known.items()]
    return next((fault for name, part, kind in parts if (fault := find_fault(part, kind, name))), None)


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _inside(place: str, key: str) -> str:
    return f"{place}[{key!r}]" if place else repr(key)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_text(path: Path, text: str) -> None:
    """Write a file that is there either completely or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because two processes may write at a time.
    part = unfinished(path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"))
    try:
        with _named(path):
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# Of the locks that this process holds.
_open_locks: set[IO[str]] = set()


def _leave_locks_to_the_parent() -> None:
    """Close the locks' files in a forked process, which would hold them on if its parent is killed."""
    for file in _open_locks:
        file.close()
    _open_locks.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextlib.contextmanager
def hold_lock(
    path: Path, *, waiting: Callable[[], None] | None = None, warn: Callable[[str], None] | None = None
) -> Iterator[bool]:
    """Hold a lock that other processes respect, as long as this process lives.

    While it is held, its file says by whom; see `lock_holder`. On a file system that has no locks (some Lustre and NFS
    mounts) nobody is kept out, and the caller goes on.

    Args:
        path: the lock's file.
        waiting: called once if another process has the lock, which is then waited for. None: do not wait.
        warn: called with a sentence if the file system has no locks. None: it goes to stderr.

    Yields:
        whether the lock is held, as far as locks can tell.

    Raises:
        OSError: if the file cannot be made.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:  # Windows
        yield True
        return
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            _open_locks.add(file)
            try:
                if not _take(file, waiting, warn or _say):
                    yield False
                    return
                if not _is_at(path, file):
                    continue  # deleted while this one waited, with the folder: the lock is another file now
                with contextlib.suppress(OSError):  # a full disk is no reason not to hold it
                    file.truncate(0)
                    since = time.strftime("%Y-%m-%d %H:%M:%S")
                    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
                    os.write(file.fileno(), json.dumps(holder).encode())
                yield True
                return
            finally:
                _open_locks.discard(file)


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(file: IO[str], waiting: Callable[[], None] | None, warn: Callable[[str], None]) -> bool:
    """Lock a file, or wait for that; see `hold_lock`. Returns whether it is locked, as far as that can be."""
    import fcntl

    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if waiting is None:
                return False
            waiting()
            waiting = _nothing
        except OSError as error:  # ENOSYS, ENOLCK, EOPNOTSUPP
            warn(
                f"{Path(file.name).parent} is on a file system without locks ({error.strerror}): nothing keeps another "
                "process from working there at the same time."
            )
            return True
        time.sleep(1)


def _nothing() -> None:
    pass


def lock_descriptor(path: Path) -> int | None:
    """Return the descriptor of a lock that this process holds; who inherits it holds the lock with it, and after it."""
    return next((file.fileno() for file in _open_locks if file.name == str(path)), None)


def adopt_lock(path: Path) -> None:
    """Keep a lock that was inherited from those that this process forks, as its own are."""
    descriptors = Path("/proc/self/fd")
    known = {file.fileno() for file in _open_locks}
    for number in [int(entry.name) for entry in descriptors.iterdir()] if descriptors.is_dir() else []:
        with contextlib.suppress(OSError):  # the one that has listed them is gone
            if number not in known and os.path.samestat(os.fstat(number), path.stat()):
                _open_locks.add(os.fdopen(number, "a"))


def lock_holder(path: Path) -> str:
    """Say who holds a lock that is held: process, machine, and since when; nothing if its file does not tell."""
    try:
        holder = read_json(path, {"host": str, "pid": int, "since": str})
    except InputError:
        return ""
    return f"process {holder['pid']} on {holder['host']}, there since {holder['since']}"


def _say(text: str) -> None:
    print(f"nnunet_plugins: {text}", file=sys.stderr, flush=True)
