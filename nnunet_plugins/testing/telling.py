"""Tell what the checks of a backbone found, one line for each, and for a failure what nnU-Net needs and why."""

import contextlib
import textwrap
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest

from nnunet_plugins.testing.needs import NotConformingError

_WIDTH = 116


class Telling:
    """A plugin of pytest in place of its own reports.

    Attributes:
        trouble: what kept checks from being run, in words.
    """

    def __init__(self) -> None:
        self.trouble = ""
        self._of: dict[str, list[bool]] = defaultdict(list)  # by check, which passed
        self._failed: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # check, need and found; plans
        self._capture: Any = None

    def pytest_configure(self, config: pytest.Config) -> None:
        """Remember who captures the output."""
        self._capture = config.pluginmanager.getplugin("capturemanager")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a module that could not be loaded."""
        if report.failed:
            self.trouble = str(report.longrepr).strip().splitlines()[-1]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how a check ended."""
        report = yield
        if report.skipped or (report.passed and report.when != "call"):
            return report
        check = item.name.partition("[")[0].removeprefix("test_").replace("_", " ")
        self._of[check].append(report.passed)
        if call.excinfo is not None:
            error = call.excinfo.value
            need, found = "The check itself ended in an error.", f"{type(error).__name__}: {error}"
            if isinstance(error, NotConformingError):
                need, found = error.need, error.found
            _, _, plan = item.name.partition("[")[2].rstrip("]").partition(" ")
            self._failed[check, need, found].append(plan)
        with self._capture.global_and_fixture_disabled() if self._capture else contextlib.nullcontext():
            print("." if report.passed else "F", end="", flush=True)
        return report

    def summary(self) -> str:
        """Return all in words."""
        lines = ["", ""]
        for check, passed in self._of.items():
            share = f" ({sum(passed)} of {len(passed)} plans)" if len(passed) > 1 else ""
            lines.append(f"  {'ok    ' if all(passed) else 'FAILED'}  {check}{share}")
        for (check, need, found), plans in self._failed.items():
            where = f" ({', '.join(plans)})" if any(plans) else ""
            lines += ["", f"{check}{where}", *_indent("Needed: ", need), *_indent("Found:  ", found)]
        if self._of:
            failed = sum(not all(passed) for passed in self._of.values())
            good = "All checks passed." if not failed else f"{failed} of {len(self._of)} checks failed."
            lines += ["", good]
        return "\n".join(lines)


def _indent(head: str, text: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    first, *others = [line for part in paragraphs for line in textwrap.wrap(part, _WIDTH - len(head)) or [""]][:20]
    return [f"  {head}{first}", *(f"  {' ' * len(head)}{line}" for line in others)]
