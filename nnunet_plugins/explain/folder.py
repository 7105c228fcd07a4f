"""All cases, what there is to say of the network itself, and the tables of both."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.explain.attention import COLUMNS, describe, summarise
from nnunet_plugins.explain.case import Explained, begin_case, clear, is_of_case
from nnunet_plugins.explain.gates import as_table, find_gates, read_history
from nnunet_plugins.explain.model import Model, Wanted
from nnunet_plugins.explain.page import write_page
from nnunet_plugins.explain.panels import draw_fabric, draw_field, draw_history
from nnunet_plugins.explain.receptive_field import INPUTS, INSIDE, THRESHOLD, find_field
from nnunet_plugins.files import read_json, whole_file, write_text
from nnunet_plugins.images.finding import image_ending
from nnunet_plugins.models.cases import Case
from nnunet_plugins.prediction.cases import Log, cases_in, predict_each

_OWN = re.compile(
    r"(index\.html|(attention|attention_summary|erf|gates)\.csv|(erf_.+|fabric|gates_over_epochs)\.png|"
    r"(dataset|plans|explained)\.json|.+\.partial\..+)"
)
"""Names of what lies beside the cases."""

_MARK = "explained.json"
"""Says whose maps these are."""


def find_named(model: Model, inputs: Sequence[Path], outputs: Path, log: Log) -> list[Case]:
    """Return the cases that a user names by folders, or by the file of a channel.

    Raises:
        InputError: if there is no such file or folder, or two cases have one name.
    """
    cases: dict[str, Case] = {}
    for path in inputs:
        if path.is_dir():
            found = cases_in(model.source, path, outputs, log)
        elif path.is_file():
            # What else is in the folder is not asked for.
            name, is_channel = re.subn(r"_\d{4}$", "", path.name.removesuffix(image_ending(path.name)))
            there = cases_in(model.source, path.parent, outputs, lambda _: None)
            found = [case for case in there if path in case.images or (is_channel and case.name == name)]
            if not found:
                raise InputError(
                    f"{path} is no channel of an image, which is called CASE_0000{image_ending(path.name)}"
                )
        else:
            raise InputError(f"there is no image and no folder {path}")
        for case in found:
            if [*map(Path.resolve, cases.setdefault(case.name, case).images)] != [*map(Path.resolve, case.images)]:
                raise InputError(f"two cases are called {case.name}: {cases[case.name].images[0]} and {case.images[0]}")
    return list(cases.values())


def require_own(outputs: Path, model: Mapping[str, str]) -> None:
    """Refuse to write where something else lies: a dataset, a model, segmentations, maps of another model.

    Args:
        outputs: a folder that is not there, is empty, or that an earlier run has made.
        model: whose maps are to be written, as `identity` says it.

    Raises:
        InputError: naming what else is in it.
    """
    if not outputs.exists():
        return
    if not outputs.is_dir():
        raise InputError(f"{outputs} is a file; choose a folder with -o")
    for path in sorted(outputs.iterdir()):
        own = is_of_case(path) if path.is_dir() else _OWN.fullmatch(path.name) is not None
        if not own and not path.name.startswith("."):
            raise InputError(
                f"{outputs} holds {path.name}, which no earlier run of this command has made; choose another folder "
                "with -o"
            )
    if (outputs / _MARK).is_file():
        before = read_json(outputs / _MARK, dict.fromkeys(model, str))
        if before != model:
            other = "other weights of " if before["model"] == model["model"] else ""
            raise InputError(f"{outputs} holds maps of {other}{before['model']}; choose another folder with -o")
    elif any(not path.name.startswith(".") for path in outputs.iterdir()):
        raise InputError(f"{outputs} does not say whose maps it holds; choose another folder with -o")


def identity(model: Model) -> dict[str, str]:
    """Return what tells a model from others: its folder's name, its fold, and its weights."""
    source = model.source
    file = source.folder / f"fold_{source.folds[0]}" / source.checkpoint
    content = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            content.update(block)
    return {
        "model": f"{source.choice}, fold {source.folds[0]}",
        "checkpoint": source.checkpoint,
        "sha256": content.hexdigest(),
    }


def explain_cases(model: Model, wanted: Wanted, inputs: Sequence[Path], outputs: Path, log: Log) -> list[str]:
    """Write the maps of all cases, tables and a page; returns the cases of which that was not possible.

    Args:
        model: the network.
        wanted: what to show.
        inputs: images, or folders of them.
        outputs: folder to write to; it is made.
        log: takes lines.

    Raises:
        InputError: as `find_named` and `require_own`.
        OSError: if nothing can be written.
    """
    mark = identity(model)
    require_own(outputs, mark)
    cases = find_named(model, inputs, outputs, log)
    outputs.mkdir(parents=True, exist_ok=True)
    write_text(outputs / _MARK, json.dumps(mark, indent=2))
    found: list[Explained] = []
    failed: list[str] = []
    pictures: list[tuple[str, Path]] = []
    if "erf" in wanted.maps:
        fields = _fields(model, wanted, outputs, log)
        pictures += fields
        failed += ["erf"] * (len(fields) < max(1, len(wanted.named)))
    pictures += _gates(model, wanted, outputs, log)
    if {"attention", "gradcam", "activations"} & {*wanted.maps}:
        begin = partial(begin_case, model, wanted, outputs, found, log)
        remedy = "Use --tiles, fewer --maps, or a machine with more"
        without = predict_each(model.source, cases, outputs, begin, log, remedy=remedy)
        for name in without:  # of an earlier run, or half of this one
            clear(outputs / name)
        failed += without
    summary = _shares(found, outputs, log)
    write_page(outputs / "index.html", model, found, pictures, summary)
    log(f"Wrote {outputs / 'index.html'}")
    return failed


def _fields(model: Model, wanted: Wanted, outputs: Path, log: Log) -> list[tuple[str, Path]]:
    pictures, rows = [], []
    log(f"Effective receptive field, {INPUTS} passes with gradients")
    for layer in wanted.named or (None,):
        name = layer or "logits"
        try:
            field = find_field(model.network, layer, model.patch_shape, model.device)
        except Exception as error:  # whatever a library raises where memory runs out, or no gradient comes through
            why = f"out of memory: {memory.describe_limit()}" if memory.is_out_of_memory(error) else _first_line(error)
            log(f"The effective receptive field of {name} FAILED: {why}")
            continue
        box, patch = ("x".join(map(str, size)) for size in (field.box, model.patch_shape[2:]))
        said = (
            f"Effective receptive field of {name}: {field.share:.1%} of the {patch} voxels are above {THRESHOLD:.0%} "
            f"of the largest; {INSIDE:.0%} of all is in {box} voxels"
        )
        log(said)
        rows.append({"layer": name, "patch": patch, "share": field.share, "box": box})
        pictures.append((said, outputs / f"erf_{name}.png"))
        draw_field(pictures[-1][1], f"Effective receptive field of {name}", field)
    if rows:
        _write_table(pd.DataFrame(rows), outputs / "erf.csv")
    return pictures


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or repr(error)


def _gates(model: Model, wanted: Wanted, outputs: Path, log: Log) -> list[tuple[str, Path]]:
    if "gates" not in wanted.maps:
        return []
    gates, pictures = find_gates(model.network), []
    _write_table(as_table(gates), outputs / "gates.csv")
    low, high = (choose(gates, key=lambda gate: gate.value) for choose in (min, max))
    log(f"{len(gates)} gates, from {low.value:.3f} ({low.name}) to {high.value:.3f} ({high.name})")
    if any(gate.edge for gate in gates):
        pictures.append(("The fabric, each edge as wide as its gate is open", outputs / "fabric.png"))
        draw_fabric(pictures[-1][1], gates)
    folder = model.source.folder / f"fold_{model.source.folds[0]}"
    try:
        history = read_history(folder)
    except InputError as error:  # which costs no map
        log(str(error))
        history = None
    if history is not None and len(history) and len(history.columns):
        pictures.append((f"Gates over the training, from {folder.name}/gates.csv", outputs / "gates_over_epochs.png"))
        draw_history(pictures[-1][1], history)
    return pictures


def _shares(found: Sequence[Explained], outputs: Path, log: Log) -> pd.DataFrame | None:
    rows = [row for case in found for row in case.shares]
    if not rows:
        return None
    shares = pd.DataFrame(rows, columns=COLUMNS)
    _write_table(shares, outputs / "attention.csv")
    summary = summarise(shares)
    _write_table(summary, outputs / "attention_summary.csv")
    log(f"Attention, mean ± standard deviation over {shares['case'].nunique()} cases:\n{describe(summary)}")
    return summary


def _write_table(table: pd.DataFrame, file: Path) -> None:
    with whole_file(file) as part:
        table.to_csv(part, index=False)
