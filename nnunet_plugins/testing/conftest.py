"""For pytest --pyargs nnunet_plugins.testing: leave out the plans of a dataset where none is asked for."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the file out, or let others decide."""
    left_out = collection_path.name == "test_dataset.py" and not config.getoption("--backbone-dataset")
    return True if left_out else None
