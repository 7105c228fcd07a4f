"""The options of the conformance tests. Pytest loads this wherever the package is installed: little else is done."""

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


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out conformance tests that concern none of the rows, which pytest would count as skipped."""
    none = [
        item
        for item in items
        if getattr(getattr(item, "function", None), "__module__", "") == "nnunet_plugins.testing.test_backbone"
        and any("empty parameter set" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skip"))
    ]
    if none:
        config.hook.pytest_deselected(items=none)
        items[:] = [item for item in items if item not in none]
