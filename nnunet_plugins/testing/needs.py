"""Failures that begin with what nnU-Net needs, and why: the docstring of the test."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


class NotConformingError(Exception):
    """A backbone does not do what nnU-Net needs.

    Args:
        need: what nnU-Net needs, and why.
        found: what was found in its place.
    """

    def __init__(self, need: str, found: str) -> None:
        super().__init__(f"{need}\nFound: {found}")
        self.need, self.found = need, found


def needed(test: Callable[..., Any]) -> Callable[..., Any]:
    """Let failures of a test, or of a fixture that returns something, begin with its docstring."""
    need = inspect.cleandoc(test.__doc__ or test.__name__)

    @functools.wraps(test)
    def telling(*arguments: Any, **named: Any) -> Any:
        try:
            return test(*arguments, **named)
        except Exception as error:
            reason = str(error).strip()
            # An assertion has told it in words; of other errors the kind says more.
            found = reason if isinstance(error, AssertionError) and reason else f"{type(error).__name__}: {reason}"
            raise NotConformingError(need, found) from error

    return telling
