"""`nnunet-plugins fixed-size --scale`: images that have come since, in the one size of a twin, to be predicted."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnunet_plugins.datasets.sources import FIXED
from nnunet_plugins.fixed_size.twin import ENDING, read_fixed
from nnunet_plugins.images.resizing import write_resized
from nnunet_plugins.raw.reading import description_file, find_images, require_images_folder
from nnunet_plugins.workers import FailedJobError, finish_jobs


@dataclass(frozen=True)
class Scaled:
    """What `scale` wrote.

    Attributes:
        cases: those that are there now.
        failures: by case, why it is not.
        size: `(z, y, x)`.
    """

    cases: list[str]
    failures: dict[str, str]
    size: tuple[int, ...]


def scale(images: Path, like: str, output: Path, *, processes: int = 1, overwrite: bool = False) -> Scaled:
    """Write images as a twin has them, so that its networks can predict them.

    Args:
        images: folder of images as they are, in the layout and format of the dataset that the twin is of.
        like: number or name of the twin, or the file dataset.json of it, or of a model.
        output: folder to write.
        processes: cases at a time.
        overwrite: replace what is in `output`.

    Raises:
        InputError: if a folder or the dataset.json is missing, or the images are not like those of the dataset.
    """
    require_images_folder(images, output, overwrite=overwrite)
    description = read_fixed(description_file(like))
    fixed = description[FIXED]
    own = {"file_ending": fixed["file_ending"], "overwrite_image_reader_writer": fixed["reader"]}
    found, cases = find_images(images, {**description, **own}, "scaled")
    assert found.reader is not None
    output.mkdir(parents=True, exist_ok=True)
    work = partial(write_resized, reader=found.reader(), size=fixed["size"])
    jobs = {}
    for name, case in cases.items():
        places = [output / f"{name}_{number:04d}{ENDING}" for number in range(len(found.channels))]
        for place in places:  # of an earlier run; whatever else is there stays
            place.unlink(missing_ok=True)
        jobs[name] = partial(work, [Path(file) for file in case.images], None, places, None)
    failures = {}
    for name, result in finish_jobs(jobs, processes):
        if isinstance(result, FailedJobError) or result:
            failures[name] = str(result) if isinstance(result, FailedJobError) else "; ".join(result)
    return Scaled([name for name in jobs if name not in failures], failures, tuple(fixed["size"]))
