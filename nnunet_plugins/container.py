"""How much memory a container leaves to its processes; loads nothing."""

import contextlib
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # what the first version of cgroups says instead of "max"


def container_limit(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes that the container may use; None if nothing limits it, or nobody tells.

    Args:
        root: where the control groups lie.
        own: file that names this process's group.
    """
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            if kinds in ("", "memory"):
                base = root / "memory" if kinds else root
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                # A limit of any group around it holds as well.
                files += [base / part / name for part in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents)]
    limits = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)
