"""All cases of a folder; one that fails costs no other."""

import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.reading import read_header
from nnunet_plugins.images.recipe import require_prepared
from nnunet_plugins.planning.sources import twin_of
from nnunet_plugins.submission.cases import Case, Earlier, find_cases
from nnunet_plugins.submission.settings import Settings
from nnunet_plugins.submission.sources import Source

Log = Callable[[str], None]
_Result = TypeVar("_Result")


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
    source: Source,
    cases: Sequence[Case],
    outputs: Path,
    predict: Callable[[Case], str],
    log: Log,
    *,
    remedy: str,
    at_a_time: int = 1,
) -> list[str]:
    """Predict cases; returns those of which that was not possible, and of which nothing is left from earlier runs.

    What is told of them comes in their order. Where memory runs out with several at a time, each of those it ran out
    for has another try, alone.

    Args:
        source: the trained configuration.
        cases: to predict.
        outputs: folder to write to; it is made.
        predict: writes the prediction of a case, and returns what there is to say of it.
        log: takes lines.
        remedy: what to do where memory runs out.
        at_a_time: cases in the works, each in a thread; what cannot be shared is for `predict` to guard.

    Raises:
        OSError: if nothing can be written.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    # As nnU-Net does: what reads the labels looks here for what they mean.
    for name in ("dataset.json", "plans.json"):
        shutil.copyfile(source.folder / name, outputs / name)
    failed, again, earlier = [], [], Earlier(cases)

    def attempt(case: Case) -> tuple[str | Exception, float]:
        begun = time.monotonic()
        try:
            _require_size(source, case)
            return predict(case), time.monotonic() - begun
        except Exception as error:  # whatever it is, the other cases are not to pay for it
            return error, time.monotonic() - begun

    def tell(case: Case, said: str | Exception, seconds: float) -> None:
        if isinstance(said, Exception):
            failed.append(case.name)
            earlier.remove(case)
            said = f"FAILED: {_tell(said, remedy)}"
        else:
            earlier.keep(case)
        log(f"{cases.index(case) + 1}/{len(cases)} {case.name}: {said} ({seconds:.1f} s)")

    for case, (said, seconds) in zip(cases, _in_threads(attempt, cases, at_a_time), strict=True):
        if at_a_time > 1 and isinstance(said, Exception) and memory.is_out_of_memory(said):
            again.append(case)
        else:
            tell(case, said, seconds)
    for case in again:
        tell(case, *attempt(case))
    return failed


def _in_threads(attempt: Callable[[Case], _Result], cases: Sequence[Case], number: int) -> Iterator[_Result]:
    if number == 1:
        yield from map(attempt, cases)
        return
    # torch takes the number of its threads from the first of them to ask, and where labels are found that is one.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield from pool.map(attempt, cases)
    finally:
        # Interrupted, it does not begin what is left.
        pool.shutdown(cancel_futures=True)


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
