"""Show how a benchmark goes on: a line for whatever happens, and on a terminal bars below them."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from nnunet_plugins.benchmark.engine import Event
from nnunet_plugins.benchmark.progress import duration

_STEP = 0.05  # a line per twentieth of a training, like nnU-Net's checkpoints


class Display:
    """Takes what `engine.run_tasks` tells.

    Args:
        total: number of tasks.
    """

    def __init__(self, total: int) -> None:
        self.total, self.finished = total, 0
        self._shown: dict[str, float] = {}
        self._bars: Any = None
        self._rows: dict[str, Any] = {}
        self._whole: Any = None

    @contextlib.contextmanager
    def bars(self) -> Iterator[None]:
        """Draw bars while the block lasts, if this is a terminal."""
        if not sys.stdout.isatty():
            yield
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns) as self._bars:
            self._whole = self._bars.add_task("all tasks", total=self.total, completed=self.finished, note="")
            yield
        self._bars, self._rows = None, {}

    def tell(self, event: Event) -> None:
        """Write a line for an event."""
        if event.what in ("done before", "done", "failed", "skipped"):
            self.finished += 1
        if event.what == "progress":
            if self._is_news(event):
                self._write(f"        {event.task.title}: {event.text}")
        else:
            text = f": {event.text}" if event.text else ""
            self._write(f"[{self.finished}/{self.total}] {event.task.title}: {event.what}{text}")

    def _is_news(self, event: Event) -> bool:
        fraction = event.fraction
        if self._bars is not None or fraction is None:
            return self._bars is None
        if 0 < fraction < 1 and fraction - self._shown.get(event.task.name, 0.0) < _STEP - 1e-9:
            return False
        self._shown[event.task.name] = fraction
        return True

    def look(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Move the bars of the running tasks."""
        if self._bars is None:
            return
        self._bars.update(self._whole, completed=self.finished)
        for name in list(self._rows):
            if name not in states:
                self._bars.remove_task(self._rows.pop(name))
        for name, state in states.items():
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(name, total=1.0, note="")
            note = state.get("told") or f"{state['status']} for {duration(time.time() - state['started'])}"
            self._bars.update(self._rows[name], completed=state.get("fraction") or 0.0, note=note)

    def _write(self, line: str) -> None:
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)
