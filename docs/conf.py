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
