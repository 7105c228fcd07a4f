import re
import sys
from collections.abc import Iterable
from pathlib import Path

from nnunet_plugins import __version__
from nnunet_plugins.images.facts import table
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.registry import BACKBONES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from matrix_record import TRAINERS, outcome, recorded, sources

project = "nnunet_plugins"
copyright = "the nnunet_plugins developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_use_ivar = True
autodoc_typehints_format = "fully-qualified"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # of torch and nnU-Net
default_role = "code"  # as our docstrings mean it
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"nnunet_plugins {release}"
myst_heading_anchors = 3


BAR = "\\|"  # a bar that does not end a cell


def _markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in lines) + "\n"


def _paper_link(paper: str) -> str:
    """Shorten "Name et al. year, title (arXiv:number)" to a link."""
    return re.sub(r"^(.+? \d{4}), .+ \(arXiv:([\d.]+)\)$", r"[\1](https://arxiv.org/abs/\2)", paper)


# The tables of trainers and modifiers are the registry's rows, so that they cannot be out of date.
generated = Path(__file__).parent / "_generated"
generated.mkdir(exist_ok=True)
(generated / "trainers.md").write_text(
    _markdown_table(
        ("trainer", "what it is", "works in", "ablation twin", "paper"),
        [
            (f"`{r.trainer}`", r.summary, ", ".join(f"{d}D" for d in r.dimensions), f"`{r.twin}`", _paper_link(r.paper))
            for r in BACKBONES
        ],
    )
)
(generated / "modifiers.md").write_text(
    _markdown_table(("modifier", "what it does"), [(f"`_{m.name}`", m.summary) for m in MODIFIERS])
)
# What a file means to each command is a table of the code as well.
(generated / "facts.md").write_text(
    _markdown_table(("files", "doctor", "evaluate, benchmark", "inference", "pictures of a report"), table())
)


def _code(feature: str) -> str:
    """Mark options, commands and configurations in a feature's name."""
    return re.sub(r"(?<!\w)(--?\w+|nnUNetv2_\w+|[23]d\w*)", r"`\1`", feature)


def _names(trainers: Iterable[str]) -> str:
    return ", ".join(f"`{trainer}`" for trainer in trainers)


def _feature_matrix() -> str:
    """Show the recorded matrix: features by group, and trainers in columns where their outcomes are all the same."""
    rows = {trainer: cells for trainer in TRAINERS if (cells := recorded(trainer))}
    if not rows:
        return "Pending: no trainer was run yet.\n"
    fullest = max(rows.values(), key=lambda cells: sum(map(len, cells.values())))
    features = [(group, name) for group, names in fullest.items() for name in names]
    columns: dict[tuple[str, ...], list[str]] = {}
    for trainer, cells in rows.items():
        column = tuple(outcome(cells.get(group, {}).get(name)) for group, name in features)
        columns.setdefault(column, []).append(trainer)
    letters = [chr(ord("A") + number) for number in range(len(columns))]
    text = "".join(
        f"- **{letter}**: {_names(trainers)}\n" for letter, trainers in zip(letters, columns.values(), strict=True)
    )
    for group, names in fullest.items():
        table = [(_code(name), *(column[features.index((group, name))] for column in columns)) for name in names]
        text += "\n" + _markdown_table((group.lower(), *letters), table)
    cells = {trainer: [cell for group in rows[trainer].values() for cell in group.values()] for trainer in rows}
    every = [cell for row in cells.values() for cell in row]

    def versions(key: str) -> str:
        return " and ".join(sorted({cell[key] for cell in every}))

    first, last = min(cell["date"] for cell in every), max(cell["date"] for cell in every)
    when = first if first == last else f"{first} to {last}"
    text += (
        f"\nRecorded {when} with version {versions('nnunet_plugins')} of this package, "
        f"nnU-Net {versions('nnunetv2')} and torch {versions('torch')}: {len(every)} cells.\n"
    )
    now = {row.trainer: sources(row) for row in BACKBONES}
    older = [trainer for trainer, row in cells.items() if any(cell["sources"] != now[trainer] for cell in row)]
    if older:
        text += f"\nRecorded, in part or whole, before the last change to their code: {_names(older)}.\n"
    if pending := [trainer for trainer in TRAINERS if trainer not in rows]:
        text += f"\nPending, as not run yet: {_names(pending)}.\n"
    return text


(generated / "feature-matrix.md").write_text(_feature_matrix())
