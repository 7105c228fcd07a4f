"""Write a submission: models, packages, and what runs them on a platform.

The folder is written beside its place and moved there when it is complete.
"""

import json
import platform as this_platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.file_path_utilities import get_ensemble_name

from nnunet_plugins import __version__, backbones
from nnunet_plugins._startup import listed, trainer_folder
from nnunet_plugins.datasets.folders import BYTE_WRITERS, largest_label
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.images.preparing import another_version
from nnunet_plugins.images.recipe import read_recipe
from nnunet_plugins.models.settings import (
    FILE,
    MANIFEST,
    OUTPUT_TYPES,
    TRAINERS,
    Member,
    Settings,
    fitting_type,
)
from nnunet_plugins.models.sources import Source, require_one_task
from nnunet_plugins.prediction.whole_volume import require_any_size
from nnunet_plugins.submission import wheels
from nnunet_plugins.submission.model_card import write_model_card
from nnunet_plugins.submission.platforms import Platform
from nnunet_plugins.submission.rendering import render

_SLUG = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*")
_POSTPROCESSING = {"postprocessing_fns": [str], "postprocessing_kwargs": [{"labels_or_regions": None}]}
# nnU-Net's fast preset: linear interpolation by torch, see its planner nnUNetPlannerResEncL_torchres.
_TORCH_RESAMPLING = {"force_separate_z": False, "memefficient_seg_resampling": False}
_FAST_STEP = 0.75


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        name: of the submission.
        platform: where it is to run.
        sources: the networks; their probabilities are averaged.
        input_names: by channel, sockets or suffixes of files.
        output_name: socket of the segmentation.
        output_type: numpy's name; None for the smallest type that holds the labels.
        postprocessing: file that nnU-Net's `determine_postprocessing` wrote; None: the one that fits, if there is one.
        without_postprocessing: leave it out, whatever there is.
        fast: resample with torch, no mirroring, a wider step.
        seconds_per_case: to aim at.
        whole_volume: one of `arguments.WHOLE_VOLUME`, for one pass over each case; None for tiles.
        separate_model: leave the model out of the image, for a platform that takes it apart.
        with_wheels: ship all packages, not just their versions.
        wheelhouse: folder with wheels that may be used, and where new ones are kept.
        packages: more Python packages that it needs, besides nnU-Net, this one and those that the networks come from.
        base_image: of the container.
        benchmark: folder of a benchmark with these networks, for the model card.
    """

    name: str
    platform: Platform
    sources: tuple[Source, ...]
    input_names: tuple[str, ...] = ()
    output_name: str = ""
    output_type: str | None = None
    postprocessing: Path | None = None
    without_postprocessing: bool = False
    fast: bool = False
    seconds_per_case: float | None = None
    whole_volume: str | None = None
    separate_model: bool = False
    with_wheels: bool = True
    wheelhouse: Path | None = None
    packages: tuple[str, ...] = ()
    base_image: str = f"python:{this_platform.python_version()}-slim"
    benchmark: Path | None = None

    @property
    def first(self) -> Source:
        """The network whose dataset says what the images and labels are."""
        return self.sources[0]

    @property
    def image(self) -> str:
        """Name of the container's image."""
        return "-".join(re.findall("[a-z0-9]+", self.name.lower())) or "submission"

    @cached_property
    def largest_label(self) -> int:
        """The largest value in a segmentation."""
        return largest_label(self.first.dataset_json, self.first.folder / "dataset.json")

    @cached_property
    def found_postprocessing(self) -> Path | None:
        """The file of the post-processing that `find_best_configuration` determined; None if it did not."""
        if self.without_postprocessing:
            return None
        if self.postprocessing:
            return self.postprocessing
        return next((path for path in _postprocessing_places(self.sources) if path.is_file()), None)

    def warnings(self) -> list[str]:
        """Return what may make the submission's segmentations others than those of the training's validation."""
        recipe = read_recipe(self.first.dataset_json, self.first.folder / "dataset.json")
        found = another_version(recipe) if recipe else ""
        return [f"{found}, and export again: the submission takes the packages along that are here"] if found else []


def check_request(request: Request) -> None:
    """Check what can be checked before anything is written.

    Raises:
        InputError: naming the option that does not fit.
    """
    channels, platform = request.first.channels, request.platform
    require_one_task(request.sources)
    if len({source.choice for source in request.sources}) < len(request.sources):
        raise InputError("a network stands in the ensemble twice")
    if platform.layout == "sockets":
        if len(request.input_names) != len(channels):
            raise InputError(
                f"{platform.name} needs --input-socket with one slug for each of the {len(channels)} channels "
                f"({', '.join(channels)}), in this order; got {len(request.input_names)}"
            )
        if not request.output_name:
            raise InputError(f"{platform.name} needs --output-socket, the slug of the segmentation")
        for slug in (*request.input_names, request.output_name):
            if not _SLUG.fullmatch(slug):
                raise InputError(f"{slug!r} is no slug; take it from the socket's page, such as ct-image")
    elif request.output_name:
        raise InputError(f"{platform.name} has no sockets; leave out --output-socket")
    if platform.layout == "files" and request.input_names:
        raise InputError(f"{platform.name} takes nnU-Net's own files; leave out --input-socket and --input-suffix")
    if platform.layout == "case folders" and len(request.input_names) not in (0, len(channels)):
        raise InputError(f"--input-suffix needs one suffix for each channel ({', '.join(channels)}), in this order")
    if request.separate_model and not platform.container:
        raise InputError(f"{platform.name} has no image to leave the model out of; leave out --separate-model")
    if request.whole_volume:
        if request.seconds_per_case:
            raise InputError("--seconds-per-case counts tiles; leave it out, or --whole-volume")
        for source in request.sources:
            require_any_size(source.choice.trainer)
    _check_output_type(request)
    if not re.fullmatch(r"[\w .+()-]+", request.name):
        raise InputError(f"{request.name!r} cannot be a name; use letters, digits, spaces and . + - ( )")
    if request.platform.container and (sys.platform, this_platform.machine()) != ("linux", "x86_64"):
        if request.with_wheels:
            raise InputError(
                "the wheels of this machine do not fit the container (linux/amd64); use --no-wheels, and `docker "
                "build` downloads those that do"
            )


def _check_output_type(request: Request) -> None:
    largest, wanted = request.largest_label, request.output_type
    if wanted is not None and wanted not in OUTPUT_TYPES:
        raise InputError(f"{wanted!r} is none of {', '.join(OUTPUT_TYPES)}")
    if wanted is not None and largest > OUTPUT_TYPES[wanted]:
        raise InputError(
            f"label {largest} does not fit into {wanted}, which ends at {OUTPUT_TYPES[wanted]}; leave out "
            f"--output-type, or give --output-type {fitting_type(largest)}"
        )
    reader = request.first.plans.get("image_reader_writer")
    if reader in BYTE_WRITERS and largest > OUTPUT_TYPES["uint8"]:
        raise InputError(
            f"{reader}, which the plans name, writes segmentations of 8 bits, in which label {largest} becomes "
            f"{largest % 256}; plan and train with another reader, such as NibabelIOWithReorient"
        )


def write_submission(request: Request, output: Path) -> None:
    """Write the submission's folder.

    Args:
        request: a checked one.
        output: the folder, which must not exist.

    Raises:
        InputError: if something of it cannot be made; then nothing is left.
    """
    if output.exists():
        raise InputError(f"{output} exists already; choose another folder or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    part = room / output.name  # with the permissions of any other folder
    part.mkdir()
    try:
        settings = _write_models(request, part / "model")
        versions = _write_packages(request, part)
        _write_templates(request, settings, part)
        write_model_card(part / "MODEL_CARD.md", request.sources, settings, versions, request.benchmark, _date())
        _write_manifest(request, versions, part)
        part.rename(output)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _write_models(request: Request, models: Path) -> Settings:
    members = tuple(_write_member(source, models, fast=request.fast) for source in request.sources)
    _write_trainers(request.sources, models)
    postprocessing = request.found_postprocessing
    settings = Settings(
        name=request.name,
        members=members,
        channels=request.first.channels,
        layout=request.platform.layout,
        inputs=request.input_names or (request.first.channels if request.platform.layout == "case folders" else ()),
        output=request.output_name,
        ending=request.first.dataset_json["file_ending"],
        output_type=request.output_type or fitting_type(request.largest_label),
        postprocessing=tuple(_read_postprocessing(postprocessing)) if postprocessing else (),
        mirroring=not request.fast,
        step=_FAST_STEP if request.fast else 0.5,
        seconds_per_case=request.seconds_per_case,
        whole_volume=request.whole_volume,
    )
    write_text(models / FILE, json.dumps(settings.as_json(), indent=2))
    return settings


def _write_member(source: Source, models: Path, *, fast: bool) -> Member:
    previous = _write_member(source.previous, models, fast=fast) if source.previous else None
    folder = models / str(source.choice)
    member = Member(folder.name, source.folds, source.checkpoint, previous)
    if folder.exists():  # a member that is the first stage of another one as well
        return member
    plans = _with_torch_resampling(source) if fast else source.plans
    for name, content in (("plans", plans), ("dataset", source.dataset_json)):
        write_text(folder / f"{name}.json", json.dumps(content, indent=2))
    for fold in source.folds:
        print(f"Copying {source.choice}, fold {fold}", flush=True)
        weights = source.weights(fold)
        (folder / f"fold_{fold}").mkdir()
        torch.save(weights, folder / f"fold_{fold}" / source.checkpoint)
    return member


def _with_torch_resampling(source: Source) -> dict[str, Any]:
    plans = json.loads(json.dumps(source.plans))
    configuration = plans["configurations"][source.choice.configuration]
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
        configuration[f"resampling_fn_{what}_kwargs"] = {"is_seg": what == "seg", **_TORCH_RESAMPLING}
    return plans


def _write_trainers(sources: Sequence[Source], models: Path) -> None:
    """Ship the users' own trainers, which no package holds: the folders in which nnU-Net finds them."""
    if not any(map(_is_in_a_folder, sources)):
        return
    for number, folder in enumerate(folder for folder in listed() if folder != trainer_folder()):
        shutil.copytree(folder, models / TRAINERS / str(number), ignore=_no_sources)


def _is_in_a_folder(source: Source) -> bool:
    """Tell whether a trainer, or the row of its network, is in no package."""
    row = getattr(source.trainer, "backbone", None)
    place = backbones.source_of(row.trainer) if row else None
    is_a_file = place is not None and place.distribution is None
    return is_a_file or source.trainer.__module__.split(".")[0] not in ("nnunetv2", "nnunet_plugins")


def _brought_by(sources: Sequence[Source]) -> list[str]:
    """Return the other packages that the networks come from."""
    rows = [row for source in sources if (row := getattr(source.trainer, "backbone", None))]
    names = {place.distribution for row in rows if (place := backbones.source_of(row.trainer))}
    return sorted(name for name in names if name and name != wheels.OWN)


def _no_sources(place: str, names: list[str]) -> list[str]:
    """Return the names in a folder that are neither Python sources nor folders of such."""
    aside = ("__pycache__", ".")
    return [
        name for name in names if name.startswith(aside) or not (name.endswith(".py") or Path(place, name).is_dir())
    ]


def _postprocessing_places(sources: Sequence[Source]) -> list[Path]:
    """Return where `find_best_configuration` puts the post-processing of a network, or of two."""
    folds = tuple(sources[0].folds)
    if any(tuple(source.folds) != folds for source in sources):
        return []
    if len(sources) == 1:
        return [sources[0].folder / f"crossval_results_folds_{'_'.join(folds)}" / "postprocessing.json"]
    if len(sources) > 2:
        return []  # nnU-Net looks at pairs only
    one, other = (source.folder for source in sources)
    ensembles = one.parent / "ensembles"
    names = [get_ensemble_name(str(a), str(b), folds) for a, b in ((one, other), (other, one))]
    return [ensembles / name / "postprocessing.json" for name in names]


def _read_postprocessing(file: Path) -> list[dict[str, Any]]:
    content = read_json(file, _POSTPROCESSING)
    known = remove_all_but_largest_component_from_segmentation.__name__
    if unknown := set(content["postprocessing_fns"]) - {known}:
        raise InputError(f"{file} asks for {sorted(unknown)[0]!r}; only nnU-Net's own {known} is known")
    return list(content["postprocessing_kwargs"])


def _write_packages(request: Request, part: Path) -> dict[str, str]:
    brought = _brought_by(request.sources)
    versions = wheels.locked((wheels.OWN, *brought, *request.packages))
    house = part / "wheels"
    house.mkdir()
    for name in brought:  # which no index may have
        wheels.write_wheel(name, house)
    if request.with_wheels:
        print(f"Collecting {len(versions)} packages", flush=True)
        kept = request.wheelhouse or house
        kept.mkdir(parents=True, exist_ok=True)
        wheels.collect({name: version for name, version in versions.items() if name not in brought}, kept)
        if kept != house:
            there = {wheels.OWN, *wheels.matching(versions, house)}
            for name, wheel in wheels.matching(versions, kept).items():
                if name not in there:
                    shutil.copy2(wheel, house)
    wheels.write_own_wheel(house)
    wheels.write_requirements(versions, house, part / wheels.REQUIREMENTS)
    return versions


def _write_templates(request: Request, settings: Settings, part: Path) -> None:
    values = {
        "name": request.name,
        "platform": request.platform.name,
        "image": request.image,
        "base_image": request.base_image,
        "has_wheels": request.with_wheels,
        "build_note": f"; only its base image, `{request.base_image}`, is downloaded" if request.with_wheels else "",
        "separate_model": request.separate_model,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "inputs": settings.inputs,
        "output": settings.output,
        "ending": settings.ending,
        "channels": settings.channels,
        "description": " + ".join(member.folder for member in settings.members),
        "version": __version__,
        "date": _date(),
    }
    for name in request.platform.templates:
        write_text(part / name, render(name, values))
        if name.endswith(".sh"):
            path = part / name
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _write_manifest(request: Request, versions: dict[str, str], part: Path) -> None:
    files = sorted(path for path in part.rglob("*") if path.is_file())
    content = {
        "name": request.name,
        "platform": request.platform.name,
        "dataset": request.first.folder.parent.name,
        "created": _date(),
        "python": this_platform.python_version(),
        "machine": f"{sys.platform} {this_platform.machine()}",
        "networks": [str(source.choice) for source in request.sources],
        "versions": versions,
        "with_wheels": request.with_wheels,
        "files": {path.relative_to(part).as_posix(): wheels.sha256(path) for path in files},
    }
    write_text(part / MANIFEST, json.dumps(content, indent=2))


def _date() -> str:
    return time.strftime("%Y-%m-%d")
