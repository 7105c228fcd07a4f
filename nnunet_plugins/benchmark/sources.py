"""Where the code of a trainer stands: its classes up to nnU-Net's own, the methods that they override, their files."""

import functools
import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import STOCK_TRAINER


@functools.cache
def source_files(trainer: str) -> tuple[Path, ...]:
    """Return the files in which the classes of a trainer stand; none, if nobody finds the trainer."""
    from nnunet_plugins.planning.setting import find_trainer

    try:
        found = find_trainer(trainer)
    except InputError:
        return ()
    files = [getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in found.__mro__]
    return tuple(dict.fromkeys(Path(file) for file in files if file))


def overridden_methods(trainer: type) -> dict[str, dict[str, str]]:
    """Return what a trainer overrides of nnU-Net's: for each method, by class, a hash of its source.

    Args:
        trainer: the class.

    Returns:
        `{"train_step": {"my_module.MyTrainer": "0f3c..."}}`, the class that is asked first standing first. Methods that
        nnU-Net's trainer does not have are in it as well, since others may call them.
    """
    found: dict[str, dict[str, str]] = {}
    for kind in trainer.__mro__:
        if kind is object or (kind.__name__ == STOCK_TRAINER and kind.__module__.startswith("nnunetv2.")):
            continue
        for name, member in vars(kind).items():
            function = _function(member)
            if function is not None:
                found.setdefault(name, {})[f"{kind.__module__}.{kind.__qualname__}"] = hash_source(function)
    return dict(sorted(found.items()))


def hash_source(function: Any) -> str:
    """Return a hash of a function's source, or of its code where there is no source."""
    try:
        text = inspect.getsource(function).encode()
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr(function).encode() if code is None else code.co_code + repr(code.co_consts).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _function(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member if callable(member) and not isinstance(member, type) else None
