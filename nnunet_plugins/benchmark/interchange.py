"""Parsl's interchange, which ends when the benchmark that started it is gone.

Parsl's own lives on for ever if its parent is killed outright, and keeps all workers and their cluster jobs with it.
Without it, the workers miss its heartbeats and end.

    python -m nnunet_plugins.benchmark.interchange
"""

import os
import runpy
import shutil
import sys
import threading
import time
from pathlib import Path


def end_with_parent() -> None:
    """End this process soon after its parent has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    # Ctrl-C is for the benchmark, which then ends this process in good order; without it, it would wait for ever.
    os.setsid()
    end_with_parent()
    script = shutil.which("interchange.py", path=str(Path(sys.executable).parent)) or shutil.which("interchange.py")
    if script is None:
        raise SystemExit("Parsl's interchange.py is not on the PATH")
    runpy.run_path(script, run_name="__main__")
