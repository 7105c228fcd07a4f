"""Make the trainer class that a name stands for.

A backbone's class is its recipe with the registry row attached. A composed class adds the modifiers on top: upstream's
own trainer classes as bases where upstream has them, and numbers set after construction.
"""

import functools
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_plugins.backbones import source_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.rows import STOCK_TRAINER, Backbone, Modifier, locate, path_of
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.followed import FollowedTrainer
from nnunet_plugins.trainers.mirroring import NEVER_MIRRORING, NoMirroringTrainer
from nnunet_plugins.trainers.names import parse

# Where pickle and spawned workers look the classes up again; its module `__getattr__` comes back here.
HOME = "nnunet_plugins.trainers"
_BASE = path_of(BackboneTrainer)


@functools.cache
def trainer_class(name: str) -> type[nnUNetTrainer]:
    """Return the trainer class called `name`, the same object at every call.

    Raises:
        UnknownTrainerError: if the name is not valid.
        InputError: if the row's recipe cannot be used.
    """
    parsed = parse(name)
    if parsed.modifiers:
        base = trainer_class(parsed.backbone.trainer) if parsed.backbone else FollowedTrainer
        return _compose(name, base, parsed.modifiers)
    if parsed.backbone is None:
        return nnUNetTrainer
    return _attach(parsed.backbone)


def _attach(row: Backbone) -> type[nnUNetTrainer]:
    whose = f"nnunet_plugins: {row.trainer} of {source_of(row.trainer)}: its recipe {path_of(row.recipe)}"
    try:
        recipe = locate(row.recipe)
    except Exception as error:  # whatever other people's modules raise when they are imported
        raise InputError(f"{whose} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(recipe, type) and issubclass(recipe, BackboneTrainer)):
        raise InputError(f"{whose} is no BackboneTrainer, and builds no row's network; derive it from {_BASE}")
    namespace = {"backbone": row, "__module__": HOME, "__doc__": f"{row.summary}.\n\nSource: {row.paper}."}
    return type(row.trainer, (recipe,), namespace)


def _compose(
    name: str, base: type[nnUNetTrainer], modifiers: tuple[tuple[Modifier, int | None], ...]
) -> type[nnUNetTrainer]:
    rows = sorted((modifier for modifier, _ in modifiers), key=MODIFIERS.index)
    pieces = [locate(row.piece) for row in rows if row.piece]
    # A recipe may hold a piece already; a second time would have no consistent order of bases. It keeps its effect,
    # because no two modifiers set the same thing.
    bases = [piece for piece in pieces if not issubclass(base, piece)] + [base]
    if issubclass(base, NEVER_MIRRORING) and NoMirroringTrainer not in bases:
        bases.insert(0, NoMirroringTrainer)  # before DA5, which chooses mirror axes of its own
    numbers = {
        attribute: max(1, round(factor * number))
        for modifier, number in modifiers
        if number is not None
        for attribute, factor in modifier.scales.items()
    }

    class Composed(*bases):  # type: ignore[misc]
        # nnU-Net looks up the arguments that the signature names.
        @functools.wraps(nnUNetTrainer.__init__)  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            for attribute, value in numbers.items():
                setattr(self, attribute, value)
            # A run of 1000 epochs keeps nnU-Net's 50; a shorter one should not lose more than a twentieth either.
            self.save_every: int = min(50, max(1, self.num_epochs // 20))

    Composed.__name__ = Composed.__qualname__ = name
    Composed.__module__ = HOME
    start = STOCK_TRAINER if base is FollowedTrainer else base.__name__
    Composed.__doc__ = f"{start} with: {'; '.join(row.summary for row in rows)}."
    return Composed
