"""Turn the signals that end a program into a request, which the program obeys where nothing is half done."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, TextIO

STOPPED = 75
"""Exit code of a training that was asked to stop and can go on with `--c`: EX_TEMPFAIL of sysexits.h, "try again"."""

SECONDS_TO_END = 5.0
"""Until a process that was to end at once is ended. Schedulers wait for 10 s or more before they kill."""


class StopRequest:
    """While it is entered as a context, signals are remembered instead of ending the process or raising an exception.

    An exception out of a signal can come anywhere, also while a lock is held that someone then waits for. Outside the
    main thread, where Python allows no handlers, nothing changes.

    Processes that are forked meanwhile leave it to this one what a signal means that all of them get, such as Ctrl-C.
    SIGTERM ends them, and any of the signals once this process is gone.

    Args:
        signals: names of the signals; those that do not exist here, or are ignored as under `nohup`, are left out.
        answer: what to tell at once, on stderr.
        second_ends: whether a second Ctrl-C ends the process where it is.

    Attributes:
        signal: name of the signal that came; None if none did.
        at_once: whether a signal ends the process with `STOPPED` where it is, because there is nothing to save. What is
            cleared away on the way out may wait for ever: where worker processes got the signal, too, one of them has
            died with the lock of their queue, and a pool asks for it to end. So this has `SECONDS_TO_END`.
        last_words: called where they were not enough, to tell what would have been told at the end.
    """

    def __init__(self, signals: Sequence[str], answer: str, *, second_ends: bool = True) -> None:
        self._signals, self._answer, self._second_ends = signals, answer, second_ends
        self.signal: str | None = None
        self.at_once = False
        self.last_words: Callable[[], None] | None = None
        self._limit: threading.Timer | None = None
        self._process = os.getpid()
        self._before: dict[int, tuple[Any, _Action]] = {}

    def __enter__(self) -> "StopRequest":
        for name in self._signals:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                action = _Action(number)
                try:
                    self._before[number] = (signal.signal(number, self._remember), action)
                except ValueError:
                    return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, (handler, action) in self._before.items():
            # None stands for C code's, where it was set up before Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            action.restore()
        self._before.clear()
        if self._limit is not None:
            self._limit.cancel()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker that loads data, forked with these handlers.
            if number == signal.SIGTERM or os.getppid() != self._process:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        first, before = self.signal is None, self.signal
        self.signal = signal.Signals(number).name
        if self.at_once:
            if self._limit is None:
                self._limit = threading.Timer(SECONDS_TO_END, self._end)
                self._limit.daemon = True
                self._limit.start()
            raise SystemExit(STOPPED)
        if self._second_ends and before == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        if first:
            self._say(self._answer)

    def _say(self, what: str) -> None:
        # Not print, which must not be entered a second time from within a handler. Whoever reads the output may be
        # gone: `tee` by the same Ctrl-C, a terminal by the hang-up that the signal tells of.
        if sys.stderr is None:  # closed before Python began: 2 may be any other file
            return
        with contextlib.suppress(OSError):
            os.write(2, f"\nnnunet_plugins: {self.signal}: {what}\n".encode())

    def _end(self) -> None:
        try:
            self._say("ended without waiting for worker processes.")
            if self.last_words is not None:
                self.last_words()
            for child in multiprocessing.active_children():
                child.kill()  # one that waits for the lock would wait for ever
        finally:
            os._exit(STOPPED)


class _Action:
    """What the process does at a signal: Python does not know the handlers that C code has set up, such as MPI's."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._content = ctypes.create_string_buffer(1024)  # a struct sigaction has 152 bytes, or fewer
        if os.name == "posix":
            ctypes.CDLL(None).sigaction(number, None, self._content)

    def restore(self) -> None:
        if os.name == "posix":
            ctypes.CDLL(None).sigaction(self._number, self._content, None)


def drop_unread_output(*failed: TextIO) -> None:
    """Flush the output; where nobody reads it any more, this and all that follows goes nowhere, and raises nothing.

    Otherwise the interpreter tries to flush it at its end, and changes the exit code to 120.

    Args:
        failed: streams that are known to be read by nobody.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed before Python began
            continue
        try:
            if stream in failed:
                raise BrokenPipeError
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
