"""Let a process that needs too much memory end in an error of its own, not in a kill that leaves no word."""

import contextlib
import functools
import os
import traceback
from pathlib import Path

from nnunet_plugins.container import container_limit
from nnunet_plugins.errors import InputError

_PHRASES = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to allocate",
    "new thread",
    "failed to map segment",  # of a library
)


def keep_within(limit: int) -> None:
    """Let allocations of this process fail that would take it beyond a container's limit.

    Without that, the kernel kills the process as soon as it touches what it was given. For processes on the CPU only:
    a GPU's driver reserves more than it uses.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    _fill_pools()
    sizes = _sizes()
    if "VmData" not in sizes:  # no Linux
        return
    # What counts for the process's own limit was reserved, what counts for the container's was touched.
    untouched = max(0, sizes["VmData"] - sizes["RssAnon"])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit + untouched
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _fill_pools() -> None:
    """Let OpenBLAS take its working memory while there is some: where it gets none later, it ends the process."""
    import numpy as np
    import scipy.linalg

    square = np.ones((128, 128))
    for multiply in (np.dot, functools.partial(scipy.linalg.blas.dgemm, 1.0)):  # each library has one of its own
        multiply(square, square)


def peak_bytes() -> int | None:
    """Return the most main memory that this process has used so far; None where nobody tells."""
    return _sizes().get("VmHWM")


def _sizes() -> dict[str, int]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {parts[0].rstrip(":"): 1024 * int(parts[1]) for parts in fields if parts[2:] == ["kB"]}


def available_bytes() -> int | None:
    """Return how much memory is free, of the machine's and of the container's; None where nobody tells."""
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    if limit := container_limit():
        free.append(max(0, limit - _sizes().get("VmRSS", 0)))
    return min(free, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, whichever library raised it, means that there was no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError | ImportError) and any(phrase in text for phrase in _PHRASES)


def raise_if_lacking(error: BaseException, needed: int = 0) -> None:
    """Raise MemoryError if memory is what a library lacked, so that nobody takes it for a broken file.

    Args:
        error: what the library raised.
        needed: bytes that it took at its peak. The reader of NIfTI below SimpleITK does not say why it failed, so it is
            tried whether there are so many.

    Raises:
        MemoryError: if the error was one, or there are not so many bytes.
    """
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error
    import numpy as np

    np.empty(needed, np.uint8)  # raises it


def tell(error: BaseException, remedy: str) -> str:
    """Return what went wrong with a case; of what nobody has foreseen, print the traceback.

    Args:
        error: whatever was raised.
        remedy: what to do where memory runs out.
    """
    if is_out_of_memory(error):
        return f"out of memory: {describe_limit()}. {remedy} ({type(error).__name__})"
    # The system's errors have numbers; others of this class say less than their traceback.
    if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno):
        return str(error)
    traceback.print_exception(error)  # somebody will have to find it
    return f"{type(error).__name__}: {error}"


def describe_limit() -> str:
    """Return what limits the memory, in words."""
    limit = container_limit()
    if limit:
        return f"the container's limit is {limit / 2**30:.1f} GiB"
    with contextlib.suppress(ImportError):
        import resource

        soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        if set_ := [size for size in soft if size >= 0]:
            return f"the limit that was set for the process (ulimit) is {min(set_) / 2**30:.1f} GiB"
    if hasattr(os, "sysconf"):
        return f"the machine has {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    return "its size is not known"
