"""Turn the signals that end a program into a request that a training obeys between two steps."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

STOPPED = 75
"""Exit code of a training that was asked to stop and can go on with `--c`: EX_TEMPFAIL of sysexits.h, "try again"."""

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
"""What asks a training to stop: `kill`, a scheduler's warning (Slurm's `--signal=USR1@120`), and Ctrl-C."""


class StopRequest:
    """While it is entered as a context, signals are remembered instead of ending the process.

    Outside the main thread, where Python allows no handlers, nothing changes.

    Args:
        second_ends: whether a second Ctrl-C ends the process without waiting for the step.

    Attributes:
        signal: name of the signal that came; None if none did.
        at_once: whether a signal ends the process with `STOPPED` where it is, because there is nothing to save.
    """

    def __init__(self, *, second_ends: bool = True) -> None:
        self._second_ends = second_ends
        self.signal: str | None = None
        self.at_once = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for name in SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None:
                try:
                    self._before[number] = signal.signal(number, self._remember)
                except ValueError:
                    return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker that loads data, forked with these handlers: it ends as if it had none.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.at_once:
            raise SystemExit(STOPPED)
        if self._second_ends and self.signal == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        # Not print, which must not be entered a second time from within a handler.
        os.write(2, f"\nnnunet_plugins: {self.signal}: saving a checkpoint at the end of this step.\n".encode())
