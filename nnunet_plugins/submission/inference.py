"""Predict all cases of an input folder with the models of a submission. This is what runs in the container.

One process, no workers, no network, nothing compiled; the log tells every case, and a case that fails does not cost the
others. Exit codes: 0 all cases are segmented, 1 some are not, 2 nothing could be begun.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_plugins import memory
from nnunet_plugins._startup import VARIABLE, with_ours
from nnunet_plugins.arguments import positive
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.recipe import prepared_with
from nnunet_plugins.models.cases import Case, Earlier, find_cases
from nnunet_plugins.models.settings import FILE, TRAINERS, Settings, read_settings

if TYPE_CHECKING:
    from nnunet_plugins.submission.ensemble import Ensemble

UPLOADED_MODEL = Path("/opt/ml/model")
"""Where Grand Challenge puts a model that was uploaded beside the image."""

DONE, SOME_FAILED, NOTHING_DONE = 0, 1, 2
_REMEDY = "Give it more memory, or export it with fewer networks"


def parser() -> argparse.ArgumentParser:
    """Build the parser."""
    result = argparse.ArgumentParser(description="Segment all images of a folder.")
    result.add_argument("task", nargs="?", choices=("infer",), help="MLCube's name for it; may be left out")
    result.add_argument("-i", "--input", "--data_path", type=Path, default=Path("/input"), metavar="DIR")
    result.add_argument("-o", "--output", "--output_path", type=Path, default=Path("/output"), metavar="DIR")
    result.add_argument(
        "--model", type=Path, metavar="DIR", help=f"default: {UPLOADED_MODEL}, else the one shipped along"
    )
    result.add_argument("--device", metavar="NAME", help="cpu, cuda, mps; default: a GPU if there is one")
    result.add_argument(
        "--seconds-per-case",
        type=positive,
        metavar="S",
        help="aim at this by doing less: first no mirroring, then a wider step, fewer folds, fewer networks",
    )
    result.add_argument("--overwrite", action="store_true", help="segment also what has a segmentation already")
    # MLCube passes it; all there is to set is in the submission.
    result.add_argument("--parameters_file", "--additional_files", help=argparse.SUPPRESS)
    return result


def main(argv: Sequence[str] | None = None, *, models: Path | None = None) -> int:
    """Segment all cases; returns the exit code.

    Args:
        argv: options; None for the command line's.
        models: folder with the models, unless the command line or the platform has another one.
    """
    arguments = parser().parse_args(argv)
    _prepare_environment()
    try:
        folder = _find_models([arguments.model] if arguments.model else [UPLOADED_MODEL, models])
        settings = read_settings(folder)
        if arguments.seconds_per_case:
            if settings.whole_volume:
                raise InputError("--seconds-per-case counts tiles, and this submission takes cases in one pass")
            settings = replace(settings, seconds_per_case=arguments.seconds_per_case)
        cases = find_cases(settings, arguments.input, arguments.output, log)
        _require_writable(arguments.output)
        if not arguments.overwrite:
            cases = _without_finished(cases)
        log(f"{settings.name}: {len(cases)} cases")
        ensemble = _load(settings, folder, arguments.device)
        if ensemble.recipe and (before := prepared_with(arguments.input)):
            raise InputError(f"{arguments.input} holds images that are prepared already ({before}), which is done here")
    except Exception as error:  # the log has to have a last word, whatever it is
        log(f"Nothing could be begun: {memory.tell(error, _REMEDY)}")
        return NOTHING_DONE
    failed, earlier = [], Earlier(cases)
    for number, case in enumerate(cases, 1):
        if _segment(case, f"{number}/{len(cases)}", ensemble):
            earlier.keep(case)
        else:
            earlier.remove(case)
            failed.append(case)
    peak = memory.peak_bytes()
    used = f", with {peak / 2**30:.1f} GiB of memory at the most" if peak else ""
    log(f"{len(cases) - len(failed)} of {len(cases)} cases segmented{used}")
    if failed:
        log(f"Failed: {', '.join(case.name for case in failed)}")
    return SOME_FAILED if failed else DONE


def log(line: str) -> None:
    """Print a line with the time, at once."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _prepare_environment() -> None:
    """Set what nnU-Net reads when it is imported; what the user's or platform's variables say does not matter here."""
    os.environ["nnUNet_compile"] = "0"  # noqa: SIM112 - nnU-Net's own spelling
    # Also where Python does not read startup files, as in folders that pip filled with --target.
    os.environ[VARIABLE] = with_ours()


def _find_models(folders: Sequence[Path | None]) -> Path:
    places = [folder for folder in folders if folder]
    for folder in places:
        if (folder / FILE).is_file():
            return folder
    raise InputError(f"no model: {FILE} is missing in {' and in '.join(map(str, places))}")


def _require_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"nothing can be written to {output}: {error.strerror or error}") from error


def _without_finished(cases: Sequence[Case]) -> list[Case]:
    left = [case for case in cases if not case.output.exists()]
    if len(left) < len(cases):
        log(f"{len(cases) - len(left)} cases have a segmentation already")
    return left


def _load(settings: Settings, folder: Path, device: str | None) -> "Ensemble":
    own = [str(path) for path in sorted((folder / TRAINERS).glob("*"))]
    os.environ[VARIABLE] = os.pathsep.join([*own, os.environ[VARIABLE]])
    with warnings.catch_warnings():
        # What libraries say to those who develop with them.
        warnings.simplefilter("ignore", FutureWarning)
        import torch

        from nnunet_plugins.submission.ensemble import Ensemble

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cpu" and (limit := memory.container_limit()):
        memory.keep_within(limit)
    begun = time.monotonic()
    ensemble = Ensemble(settings, folder, chosen)
    networks = sum(len(network.weights) for network in ensemble.networks)
    if ensemble.recipe:
        from nnunet_plugins.images.preparing import another_version

        log(f"Images are prepared as for the training: {ensemble.recipe}")
        if warning := another_version(ensemble.recipe):
            log(f"WARNING: {warning}")
    log(f"Loaded {networks} networks in {time.monotonic() - begun:.1f} s; they run on {chosen}")
    return ensemble


def _segment(case: Case, number: str, ensemble: "Ensemble") -> bool:
    """Segment one case; returns whether that was possible."""
    from nnunet_plugins.submission.effort import Clock

    clock, settings = Clock(ensemble.settings.seconds_per_case), ensemble.settings
    try:
        from nnunet_plugins.models.images import read_image, write_segmentation

        image, properties = read_image(
            case,
            ensemble.reader,
            ensemble.ending,
            settings.channels,
            lambda line: log(f"{number} {case.name}: {line}"),
            ensemble.recipe,
        )
        log(f"{number} {case.name}: {_size(image.shape[1:])} voxels of {_size(properties['spacing'])} mm")
        segmentation = ensemble.predict(image, properties, clock, log)
        del image
        write_segmentation(segmentation, properties, case, ensemble.reader, ensemble.ending, settings.output_type)
    except Exception as error:  # it must not cost the other cases, whatever it is
        log(f"{number} {case.name} FAILED after {clock.elapsed:.1f} s: {memory.tell(error, _REMEDY)}")
        return False
    log(f"{number} {case.name}: done in {clock.elapsed:.1f} s")
    return True


def _size(numbers: Sequence[Any]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


if __name__ == "__main__":
    sys.exit(main())
