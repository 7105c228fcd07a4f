"""Jobs in several processes: a job that fails does not stop the others, and Ctrl-C ends them all without a word."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")


class FailedJobError(Exception):
    """A job came to no end; the message says why."""


def finish_jobs(jobs: Mapping[str, Callable[[], T]], processes: int) -> Iterator[tuple[str, T | FailedJobError]]:
    """Yield every job's name and result as they are finished; the result is a FailedJobError where the job raised.

    Args:
        jobs: by name; they and their results can be pickled.
        processes: jobs at a time; with 1 they run here.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from ((name, _try(job)) for name, job in jobs.items())
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        with _without_interrupts():
            futures = {pool.submit(_try, job): name for name, job in jobs.items()}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                reason = "a process was killed, perhaps for lack of memory; use fewer at a time (-np)"
                yield futures[future], FailedJobError(reason)
    except BaseException:
        # Nobody waits for the rest.
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _try(job: Callable[[], T]) -> T | FailedJobError:
    try:
        return job()
    except Exception as error:  # whatever a reader of files raises for what is in them
        return FailedJobError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that do not see Ctrl-C, which a terminal sends to all: it is for this process to end them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Processes inherit it; here, an interrupt comes when it is over.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
