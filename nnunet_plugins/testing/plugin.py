"""The options of the conformance tests. Pytest loads this wherever the package is installed: nothing else is done."""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the options."""
    group = parser.getgroup("nnunet-plugins", "the conformance tests, --pyargs nnunet_plugins.testing")
    group.addoption(
        "--backbone", action="append", default=[], metavar="TRAINER", help="backbone to test, by its trainer's name"
    )
    group.addoption("--backbone-dataset", metavar="DATASET", help="test also on this dataset's plans")
    group.addoption(
        "--backbone-configuration", default="3d_fullres", metavar="CONFIGURATION", help="of them; default: %(default)s"
    )
    group.addoption("--backbone-plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
