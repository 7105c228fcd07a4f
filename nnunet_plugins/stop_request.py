"""Turn the signals that end a program into a request, which the program obeys where nothing is half done."""

import os
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

STOPPED = 75
"""Exit code of a training that was asked to stop and can go on with `--c`: EX_TEMPFAIL of sysexits.h, "try again"."""


class StopRequest:
    """While it is entered as a context, signals are remembered instead of ending the process or raising an exception.

    An exception out of a signal can come anywhere, also while a lock is held that someone then waits for. Outside the
    main thread, where Python allows no handlers, nothing changes.

    Args:
        signals: names of the signals; those that do not exist here, or are ignored as under `nohup`, are left out.
        answer: what to tell at once, on stderr.
        second_ends: whether a second Ctrl-C ends the process where it is.

    Attributes:
        signal: name of the signal that came; None if none did.
        at_once: whether a signal ends the process with `STOPPED` where it is, because there is nothing to save.
    """

    def __init__(self, signals: Sequence[str], answer: str, *, second_ends: bool = True) -> None:
        self._signals, self._answer, self._second_ends = signals, answer, second_ends
        self.signal: str | None = None
        self.at_once = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for name in self._signals:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
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
        os.write(2, f"\nnnunet_plugins: {self.signal}: {self._answer}\n".encode())
