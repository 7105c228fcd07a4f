"""What the algorithms of a comparison are, in words."""

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.record import describe_role
from nnunet_plugins.report.words import name_some


def describe_roles(comparison: Comparison) -> dict[str, str]:
    """Say what every algorithm is, and of which networks it is the ablation twin."""
    twins: dict[str, list[str]] = {}
    for network, twin in comparison.twins.index:
        twins.setdefault(twin, []).append(network)
    said = {}
    for name in comparison.board.index:
        role, trainer = comparison.algorithms.loc[name, ["role", "trainer"]]
        words = describe_role(role, trainer, comparison.shared_modifiers)
        twin = f"ablation twin of {name_some(twins[name])}" if name in twins else ""
        said[name] = twin if twin and role in ("method", "twin") else f"{words}; {twin}" if twin else words
    return said
