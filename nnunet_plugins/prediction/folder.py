"""Labels at another spacing for all cases of a folder."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path

from nnunet_plugins import memory
from nnunet_plugins.datasets.folders import require_own_folder
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file
from nnunet_plugins.images.grid import compare_grids
from nnunet_plugins.images.reading import Header, read_header
from nnunet_plugins.images.writing import write_array, written_whole
from nnunet_plugins.models.cases import Case
from nnunet_plugins.models.images import ImageError, read_image
from nnunet_plugins.prediction.cases import Log, cases_in, predict_each
from nnunet_plugins.prediction.grid import output_geometry, output_size
from nnunet_plugins.prediction.model import Model

_COPIES = 3  # of a label map: as it is decoded, in the order of the image's axes, and SimpleITK's


def predict_folder(
    model: Model, inputs: Path, outputs: Path, factor: float, log: Log, *, keep_finished: bool = False
) -> list[str]:
    """Write the labels of all images in a folder; returns the cases of which that was not possible.

    Args:
        model: that knows them.
        inputs: folder of images, in nnU-Net's layout.
        outputs: folder to write to; it is made.
        factor: spacing of the labels along each axis, as a part of the image's.
        log: takes lines.
        keep_finished: leave out cases whose labels are there, with the same voxels.

    Raises:
        InputError: if there is no such folder, no image in it, or labels would replace images.
        OSError: if nothing can be written.
    """

    def begin(case: Case) -> Callable[[], str]:
        return partial(_predict, model, case, factor, log, keep_finished=keep_finished)

    require_own_folder(outputs, inputs, overwrite=True)
    cases = cases_in(model.source, inputs, outputs, log)
    return predict_each(model.source, cases, outputs, begin, log, remedy="Take a larger --spacing-factor")


def _predict(model: Model, case: Case, factor: float, log: Log, *, keep_finished: bool) -> str:
    """Write the labels of a case; returns what there is to say."""
    header = None if case.fault else read_header(case.images[0])
    if keep_finished and header and _is_finished(case.output, _geometry(model, header, factor)):
        return "is there already"
    image, properties = read_image(case, model.reader, model.ending, model.source.channels, log)
    if header is None:
        raise ImageError(f"SimpleITK does not know where the voxels of {case.images[0].name} lie")
    geometry = _geometry(model, header, factor)
    _require_memory(geometry, factor, model.type.itemsize)
    labels = model.labels(image, properties, geometry.grid.shape)
    with tempfile.TemporaryDirectory() as temporary:
        # The partial file beside the output has an ending that SimpleITK does not know.
        file = Path(temporary, case.output.name)
        with written_whole(file):
            write_array(labels, file, geometry)
        written = read_header(file)
        if written is None or (found := compare_grids(geometry.grid, written.grid)):
            detail = found[0].detail if written else "it cannot be read"
            raise ImageError(f"{model.ending} cannot hold the geometry of the labels: {detail} asked for")
        with whole_file(case.output) as part:
            shutil.copyfile(file, part)
    return f"{_times(image.shape[:0:-1])} voxels -> {_times(geometry.size)} of {_times(geometry.spacing)} mm"


def _geometry(model: Model, image: Header, factor: float) -> Header:
    """Return the geometry of the labels; along an axis that the file does not have, or no network knows, it is kept."""
    kept = {*range(3 - len(image.size)), *model.unknown_axes}
    size = output_size(image.grid.shape, factor, kept)
    return output_geometry(image, size[::-1][: len(image.size)])


def _is_finished(output: Path, geometry: Header) -> bool:
    there = read_header(output) if output.is_file() else None
    return there is not None and there.size == geometry.size and not compare_grids(geometry.grid, there.grid)


def _require_memory(geometry: Header, factor: float, bytes_each: int) -> None:
    needed, free = _COPIES * bytes_each * prod(geometry.size), memory.available_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"with --spacing-factor {factor:g} its labels are {_times(geometry.size)} voxels, which take "
            f"{needed / 2**30:.3g} GiB of memory; {free / 2**30:.3g} GiB are free. Take a larger factor"
        )


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
