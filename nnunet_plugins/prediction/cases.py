"""All cases of a folder; one that fails costs no other."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from nnunet_plugins import memory
from nnunet_plugins.datasets.sources import twin_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.reading import read_header
from nnunet_plugins.images.recipe import require_prepared
from nnunet_plugins.models.cases import Case, Earlier, find_cases
from nnunet_plugins.models.settings import Settings
from nnunet_plugins.models.sources import Source

Log = Callable[[str], None]

BESIDE = (".npz", ".pkl")
"""Endings of what nnU-Net writes beside a label map: probabilities, and what it knows of the image."""

_Outcome = tuple[str | Exception, float]
"""What there is to say of a case, or what went wrong; and the seconds that it took."""


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
    begin: Callable[[Case], Callable[[], str]],
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
        begin: reads a case, and returns what goes on with it: that writes the prediction, and returns what there is to
            say of it. Reading is done here, one case after the other, as it turns aside all that anybody prints.
        log: takes lines.
        remedy: what to do where memory runs out.
        at_a_time: cases in the works, each in a thread; what cannot be shared is for `begin` to guard.

    Raises:
        OSError: if nothing can be written.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    # As nnU-Net does: what reads the labels looks here for what they mean.
    for name in ("dataset.json", "plans.json"):
        shutil.copyfile(source.folder / name, outputs / name)
    failed: list[str] = []
    earlier, numbers = Earlier(cases, BESIDE), {case.name: number for number, case in enumerate(cases, 1)}

    def tell(case: Case, outcome: _Outcome) -> None:
        said, seconds = outcome
        if isinstance(said, Exception):
            failed.append(case.name)
            earlier.remove(case)
            said = f"FAILED: {memory.tell(said, remedy)}"
        else:
            earlier.keep(case)
        log(f"{numbers[case.name]}/{len(cases)} {case.name}: {said} ({seconds:.1f} s)")

    again = []
    for case, outcome in _outcomes(source, cases, begin, at_a_time, log):
        if at_a_time > 1 and isinstance(outcome[0], Exception) and memory.is_out_of_memory(outcome[0]):
            again.append(case)
        else:
            tell(case, outcome)
    for case, outcome in _outcomes(source, again, begin, 1, log):
        tell(case, outcome)
    return failed


def _outcomes(
    source: Source, cases: Sequence[Case], begin: Callable[[Case], Callable[[], str]], at_a_time: int, log: Log
) -> Iterator[tuple[Case, _Outcome]]:
    """Read cases and go on with them; what comes of each is told in their order."""

    def read(case: Case) -> Callable[[], _Outcome]:
        begun = time.monotonic()
        try:
            _require_size(source, case)
            return partial(_go_on, begin(case), begun)
        except Exception as error:  # whatever it is, the other cases are not to pay for it
            return partial(_go_on, partial(_raise, error), begun)

    if at_a_time == 1:
        for case in cases:
            yield case, read(case)()
        return
    waiting: deque[tuple[Case, Future[_Outcome]]] = deque()
    # torch takes the number of its threads from the first of them to ask, and where labels are found that is one.
    pool = ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    try:
        for case in cases:
            if len(waiting) == at_a_time:
                done, future = waiting.popleft()
                yield done, future.result()
            waiting.append((case, pool.submit(read(case))))
        for done, future in waiting:
            yield done, future.result()
    except KeyboardInterrupt:
        log("Interrupted. What the network has begun is finished first; interrupt once more not to wait for it")
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _go_on(going_on: Callable[[], str], begun: float) -> _Outcome:
    try:
        return going_on(), time.monotonic() - begun
    except Exception as error:  # likewise
        return error, time.monotonic() - begun


def _raise(error: Exception) -> str:
    raise error


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
