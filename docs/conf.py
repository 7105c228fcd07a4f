import json
import re
from pathlib import Path

from nnunet_plugins import __version__
from nnunet_plugins.registry import BACKBONES, MODIFIERS

project = "nnunet_plugins"
copyright = "the nnunet_plugins developers"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"nnunet_plugins {release}"
myst_heading_anchors = 3


def _markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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


def _code(feature: str) -> str:
    """Mark options, commands and configurations in a feature's name."""
    return re.sub(r"(?<!\w)(--?\w+|nnUNetv2_\w+|[23]d\w*)", r"`\1`", feature)


def _feature_matrix(record: dict) -> str:
    """Show the recorded matrix: features by group, and trainers in columns where their outcomes are all the same."""
    columns: dict[tuple[str, ...], list[str]] = {}
    names = [name for group in record["features"].values() for name in group]
    for trainer, cells in record["cells"].items():
        outcomes = ((name, cells.get(name, {"outcome": "not recorded"})) for name in names)
        column = tuple(": ".join(filter(None, (cell["outcome"], cell.get("reason")))) for _, cell in outcomes)
        columns.setdefault(column, []).append(trainer)
    letters = [chr(ord("A") + number) for number in range(len(columns))]
    text = "".join(
        f"- **{letter}**: {', '.join(f'`{trainer}`' for trainer in trainers)}\n"
        for letter, trainers in zip(letters, columns.values(), strict=True)
    )
    for group, features in record["features"].items():
        rows = [(_code(name), *(column[names.index(name)] for column in columns)) for name in features]
        text += "\n" + _markdown_table((group.lower(), *letters), rows)
    cells = [cell for row in record["cells"].values() for cell in row.values()]

    def versions(key: str) -> str:
        return " and ".join(sorted({cell[key] for cell in cells}))

    first, last = min(cell["date"] for cell in cells), max(cell["date"] for cell in cells)
    when = first if first == last else f"{first} to {last}"
    return (
        f"{text}\nRecorded {when} with version {versions('nnunet_plugins')} of this package, "
        f"nnU-Net {versions('nnunetv2')} and torch {versions('torch')}: {len(cells)} cells.\n"
    )


(generated / "feature-matrix.md").write_text(
    _feature_matrix(json.loads((Path(__file__).parent / "feature-matrix.json").read_text()))
)
