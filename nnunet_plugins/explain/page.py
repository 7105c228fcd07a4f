"""One page with all pictures, tables and a viewer of slices, which needs no network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_plugins.explain.case import Explained
from nnunet_plugins.explain.model import Model
from nnunet_plugins.explain.slices import VIEWERS
from nnunet_plugins.files import write_text

_FOLDER = Path(__file__).parent


def write_page(
    file: Path,
    model: Model,
    cases: Sequence[Explained],
    pictures: Sequence[tuple[str, Path]],
    summary: pd.DataFrame | None,
) -> None:
    """Write the page.

    Args:
        file: to write; what it shows lies beside it, too.
        model: the network.
        cases: with what comes of them.
        pictures: captions and files of what is of the network itself.
        summary: of attention, if there is one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    shown = cases[:VIEWERS]
    data = {case.name: _as_json(case) for case in shown if case.viewer is not None}
    page = environment.get_template("page.html.j2").render(
        trainer=model.trainer,
        about=f"{model.source.folder.absolute().parent.name}, {model.source.choice}, fold {model.source.folds[0]}",
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        pictures=[(caption, _inline(one)) for caption, one in pictures],
        cases=[
            {
                "name": case.name,
                "notes": case.notes,
                "viewer": case.name in data and bool(data[case.name]["above"]),
                "titles": [stack["title"] for stack in data.get(case.name, {}).get("above", [])],
                "panels": [(heading, _inline(one)) for heading, one in case.panels],
            }
            for case in shown
        ],
        others=[case.name for case in cases[VIEWERS:]],
        summary=[] if summary is None else summary.to_dict("records"),
        # Nothing in it may end the element that holds it.
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(file, page)


def _inline(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _as_json(case: Explained) -> dict[str, Any]:
    assert case.viewer is not None
    _, height, width = case.viewer.spacing
    return {
        "below": case.viewer.below.slices,
        "numbers": case.viewer.below.numbers,
        "aspect": height / width,
        "above": [asdict(stack) for stack in case.viewer.above],
    }
