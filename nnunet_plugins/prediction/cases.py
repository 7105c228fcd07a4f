"""Cases one after the other; one that fails costs no other."""

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.reading import read_header
from nnunet_plugins.images.recipe import require_prepared
from nnunet_plugins.planning.sources import twin_of
from nnunet_plugins.submission.cases import Case, Earlier, find_cases
from nnunet_plugins.submission.settings import Settings
from nnunet_plugins.submission.sources import Source

Log = Callable[[str], None]


def cases_in(source: Source, inputs: Path, outputs: Path, log: Log) -> list[Case]:
    """Return the cases in a folder of images, in nnU-Net's layout.

    Args:
        source: the trained configuration, whose dataset says how files end, and which channels there are.
        inputs: the folder.
        outputs: folder for the predictions.
        log: takes lines.

    Raises:
        InputError: if there is no such folder, no image in it, or the network was trained on prepared images and these
            are not.
    """
    if inputs.is_dir():
        require_prepared(source.dataset_json, source.folder / "dataset.json", inputs)
    settings = Settings("predict", (), source.channels, ending=str(source.dataset_json["file_ending"]))
    return find_cases(settings, inputs, outputs, log)


def predict_each(
    source: Source, cases: Sequence[Case], outputs: Path, predict: Callable[[Case], str], log: Log, *, remedy: str
) -> list[str]:
    """Predict cases; returns those of which that was not possible, and of which nothing is left from earlier runs.

    Args:
        source: the trained configuration.
        cases: to predict.
        outputs: folder to write to; it is made.
        predict: writes the prediction of a case, and returns what there is to say of it.
        log: takes lines.
        remedy: what to do where memory runs out.

    Raises:
        OSError: if nothing can be written.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    # As nnU-Net does: what reads the labels looks here for what they mean.
    for name in ("dataset.json", "plans.json"):
        shutil.copyfile(source.folder / name, outputs / name)
    failed, earlier = [], Earlier(cases)
    for number, case in enumerate(cases, 1):
        begun = time.monotonic()
        try:
            _require_size(source, case)
            said = predict(case)
            earlier.keep(case)
        except Exception as error:  # whatever it is, the other cases are not to pay for it
            failed.append(case.name)
            earlier.remove(case)
            said = f"FAILED: {_tell(error, remedy)}"
        log(f"{number}/{len(cases)} {case.name}: {said} ({time.monotonic() - begun:.1f} s)")
    return failed


def _require_size(source: Source, case: Case) -> None:
    """Refuse images that have not been scaled to the one size of what a network was trained on."""
    twin = twin_of(source.dataset_json, source.folder / "dataset.json")
    header = read_header(case.images[0]) if twin and not case.fault else None
    if twin and header and header.size[::-1] != twin[1]:
        there, wanted = ("x".join(map(str, one)) for one in (header.size[::-1], twin[1]))
        raise InputError(
            f"it has {there} voxels, and the network was trained on images scaled to {wanted}: nnunet-plugins "
            f"fixed-size --scale FOLDER --like {source.folder / 'dataset.json'} -o SCALED"
        )


def _tell(error: Exception, remedy: str) -> str:
    if memory.is_out_of_memory(error):
        return f"out of memory: {memory.describe_limit()}. {remedy} ({type(error).__name__})"
    if isinstance(error, (InputError, OSError)):
        return str(error)
    traceback.print_exception(error)  # nobody has foreseen it, and somebody will have to find it
    return f"{type(error).__name__}: {error}"
