"""Run a submission as its platform would, and nnU-Net's own commands beside it, on the same cases.

As the platform would: in an environment of its own packages, without nnU-Net's variables, without a network, as a user
without rights where that is possible; and afterwards nothing of the submission and its inputs may have changed.
"""

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from packaging.utils import parse_wheel_filename

from nnunet_plugins._startup import VARIABLE, with_ours
from nnunet_plugins.doctor.findings import Finding, ok, problem, warning
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.images.reading import keeps_geometry, read_header
from nnunet_plugins.images.recipe import Recipe, prepared_with, read_recipe
from nnunet_plugins.images.writing import convert_image, read_labels
from nnunet_plugins.models.cases import Case, find_cases
from nnunet_plugins.models.settings import TRAINERS, Member, Settings
from nnunet_plugins.program import run_quietly, tail
from nnunet_plugins.submission.wheels import OWN, REQUIREMENTS

NOBODY = 65534
# Runs at the start of the interpreter; nothing that Python does can take it back.
_NO_NETWORK = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError(f"no network: {event} {arguments[1:]}")

sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Trial:
    """One submission, and a scratch folder to try it in.

    Attributes:
        folder: the submission.
        manifest: what it says of itself.
        settings: what it does.
        scratch: an empty folder.
        images: cases in nnU-Net's format; None for the dataset's.
        number: how many of them.
    """

    folder: Path
    manifest: Mapping[str, Any]
    settings: Settings
    scratch: Path
    images: Path | None
    number: int

    @cached_property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.scratch / "environment" / "bin" / "python"

    def check_packages(self) -> Iterator[Finding]:
        """Install what is shipped, and nothing else, into an environment of its own."""
        wanted = ".".join(self.manifest["python"].split(".")[:2])
        interpreter = _interpreter(wanted)
        run_quietly([interpreter, "-m", "venv", str(self.python.parents[1])], "no environment could be made")
        install = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        install += ["--no-index", "--find-links", str(self.folder / "wheels")]
        if self.manifest["with_wheels"]:
            requirements = self.folder / REQUIREMENTS
            run_quietly([*install, "--require-hashes", "-r", str(requirements)], "the wheels do not install")
            run_quietly([str(self.python), "-m", "pip", "check"], "a package is missing")
            number = len(requirements.read_text().splitlines())
            yield ok(f"Python {wanted} and the {number} shipped wheels, nothing missing")
            return
        shipped = sorted((self.folder / "wheels").glob("*.whl"))  # our own, and those that networks come from
        names = [OWN, *sorted({parse_wheel_filename(wheel.name)[0] for wheel in shipped} - {OWN})]
        run_quietly([*install, *map(str, shipped)], "the shipped wheels do not install")
        site = next((self.python.parents[1] / "lib").glob("python*/site-packages"))
        # A line that is a path only adds it to the end of the search: the startup files there are not read. Packages of
        # this environment may lie in others' folders, those of the system or of the user.
        standard = {*map(sysconfig.get_path, ("stdlib", "platstdlib")), sysconfig.get_config_var("DESTSHARED")}
        folders = [folder for folder in sys.path[1:] if Path(folder).is_dir() and folder not in standard]
        (site / "borrowed.pth").write_text("".join(f"{folder}\n" for folder in folders))
        yield warning(
            "the packages are not shipped, so those of this environment were used with the shipped "
            f"{'wheel' if len(names) == 1 else 'wheels'} of {' and '.join(names)}",
            "export without --no-wheels to prove them as well",
        )

    def check_predictions(self) -> Iterator[Finding]:
        """Segment some cases with the submission and with nnU-Net's commands."""
        if not self.python.is_file():
            raise InputError("there is no environment to try it in, see above")
        given = self._sample()
        inputs, outputs = self.scratch / "input", self.scratch / "output"
        _lay_out(given, self.settings, inputs)
        before = _contents(inputs), _contents(self.folder / "model")
        yield from self._predict(inputs, outputs)
        if before != (_contents(inputs), _contents(self.folder / "model")):
            yield problem("it changes its inputs or its models, which platforms mount read-only", "report this bug")
        expected = self._expect(given)
        for case in find_cases(self.settings, inputs, outputs):
            yield from _compare(case, expected / f"{case.name}{self.settings.ending}", self.settings)

    @cached_property
    def recipe(self) -> Recipe | None:
        """How the images are prepared that the networks take."""
        return read_recipe(read_json(self._description, dict), self._description)

    @property
    def _description(self) -> Path:
        return self.folder / "model" / self.settings.members[0].folder / "dataset.json"

    def _sample(self) -> Path:
        """Return a folder with the cases to try, in nnU-Net's format, and as they were before they were prepared."""
        source = self.images or _dataset_images(self.recipe.dataset if self.recipe else self.manifest["dataset"])
        if self.recipe and (before := prepared_with(source)):
            raise InputError(f"{source} holds prepared images ({before}); give those as they were with -i")
        as_files = Settings("", (), self.settings.channels, ending=self.settings.ending)
        cases = [case for case in find_cases(as_files, source, self.scratch) if not case.fault][: self.number]
        if not cases:
            raise InputError(f"{source} holds no whole case, {', '.join(self.settings.channels)}; give some with -i")
        folder = self.scratch / "given"
        folder.mkdir()
        for case in cases:
            for image in case.images:
                shutil.copy(image, folder)
        return folder

    def _predict(self, inputs: Path, outputs: Path) -> Iterator[Finding]:
        hook = self.scratch / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(_NO_NETWORK)
        outputs.mkdir()
        outputs.chmod(0o777)
        temporary = self.scratch / "tmp"
        temporary.mkdir()
        temporary.chmod(0o777)
        self.scratch.chmod(0o755)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "TMPDIR": str(temporary),
            "MPLCONFIGDIR": str(temporary),
            "PYTHONPATH": str(hook),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Threads that wait for each other leave the processor to others, with the same result.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [str(self.python), str(self.folder / "inference.py"), "-i", str(inputs), "-o", str(outputs)]
        # Whatever it leaves out in a hurry is not what is proven here.
        unhurried = ["--seconds-per-case", "1e9"] if self.settings.seconds_per_case else []
        command += ["--model", str(self.folder / "model"), "--device", "cpu", *unhurried]
        isolated = _isolation(self.python, self.folder)
        print(f"Segmenting {len(list(inputs.iterdir()))} inputs ...", file=sys.stderr, flush=True)
        output = run_quietly(
            [*isolated.prefix, *command],
            "it failed",
            env=environment,
            cwd="/",
            user=isolated.user,
            group=isolated.user,
            extra_groups=[] if isolated.user else None,
        )
        yield ok(f"it ran {isolated.what}, without nnU-Net's variables; its log ends:\n{tail(output, 3)}")

    def _expect(self, given: Path) -> Path:
        """Segment the same cases with nnU-Net's own commands; returns the folder."""
        print("Segmenting them with nnU-Net's own commands ...", file=sys.stderr, flush=True)
        if self.recipe:
            prepared = self.scratch / "prepared"
            self._nnunet("nnunet-plugins", "prepare-images", "-i", given, "-o", prepared, "--like", self._description)
            given = prepared
        joint = len(self.settings.members) > 1
        folders = [self._expect_member(member, given, probabilities=joint) for member in self.settings.members]
        result = folders[0]
        if joint:
            result = self.scratch / "expected"
            self._nnunet("nnUNetv2_ensemble", "-i", *folders, "-o", result, "-np", 1)
        if not self.settings.postprocessing:
            return result
        steps = [dict(arguments) for arguments in self.settings.postprocessing]
        pickled = self.scratch / "postprocessing.pkl"
        pickled.write_bytes(pickle.dumps(([remove_all_but_largest_component_from_segmentation] * len(steps), steps)))
        processed = self.scratch / "postprocessed"
        plans = self.folder / "model" / self.settings.members[0].folder / "plans.json"
        self._nnunet(
            "nnUNetv2_apply_postprocessing",
            *("-i", result, "-o", processed, "-pp_pkl_file", pickled, "-np", 1, "-plans_json", plans),
            *("-dataset_json", plans.with_name("dataset.json")),
        )
        return processed

    def _expect_member(self, member: Member, given: Path, *, probabilities: bool) -> Path:
        output = self.scratch / "expected of" / member.folder
        options: list[object] = ["-i", given, "-o", output]
        options += ["-f", *member.folds, "-chk", member.checkpoint, "-step_size", self.settings.step, "-device", "cpu"]
        options += [] if self.settings.mirroring else ["--disable_tta"]
        options += ["--save_probabilities"] if probabilities else []
        if member.previous:
            first = self._expect_member(member.previous, given, probabilities=False)
            options += ["-prev_stage_predictions", first]
        if self.settings.whole_volume:
            self._predict_whole(member, options)
        else:
            model = ("-m", self.folder / "model" / member.folder)
            self._nnunet(
                "nnUNetv2_predict_from_modelfolder", *options, *model, "-npp", 1, "-nps", 1, "--disable_progress_bar"
            )
        return output

    def _predict_whole(self, member: Member, options: Sequence[object]) -> None:
        """Predict with our own command, where nnU-Net has none: in a folder of results that are the submission's."""
        results, dataset = self.scratch / "results", self.manifest["dataset"]
        (results / dataset).mkdir(parents=True, exist_ok=True)
        link = results / dataset / member.folder
        if not link.exists():  # a network may be a member, and the first stage of another one
            link.symlink_to((self.folder / "model" / member.folder).resolve())
        trainer, plans, configuration = member.folder.split("__")
        model = ("-d", dataset, "-tr", trainer, "-p", plans, "-c", configuration, "--run-code-in-checkpoint")
        how = ("predict", *options, *model, "--whole-volume", self.settings.whole_volume)
        self._nnunet("nnunet-plugins", *how, nnUNet_results=str(results))

    def _nnunet(self, command: str, *options: object, **variables: str) -> None:
        own = [str(path) for path in (self.folder / "model" / TRAINERS).glob("*")]
        variables = {**os.environ, "nnUNet_compile": "0", VARIABLE: os.pathsep.join([*own, with_ours()]), **variables}
        run = [str(Path(sys.executable).parent / command), *map(str, options)]
        run_quietly(run, f"{command} failed", env=variables)


@dataclass(frozen=True)
class _Isolation:
    prefix: tuple[str, ...]
    user: int | None
    what: str


def _isolation(python: Path, folder: Path) -> _Isolation:
    """Return as much isolation as this machine allows."""
    prefix: tuple[str, ...] = ()
    what = "without a network as far as Python goes (sockets refused)"
    if shutil.which("unshare") and not subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        prefix, what = ("unshare", "--net"), "without a network (a namespace of its own)"
    if os.name != "posix" or os.geteuid() != 0:
        return _Isolation(prefix, None, what)
    look = f"import os, sys; sys.exit(not all(os.access(p, os.R_OK) for p in {[str(folder / 'inference.py')]!r}))"
    try:
        reachable = not subprocess.run(
            [str(python), "-c", look], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True
        ).returncode
    except OSError:
        reachable = False
    if not reachable:
        return _Isolation(prefix, None, f"{what}, as root because others cannot read {folder} or run {python}")
    if prefix:
        # It takes rights to leave the network; then they are given up.
        prefix = (*prefix, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        return _Isolation(prefix, None, f"{what}, as nobody")
    return _Isolation(prefix, NOBODY, f"{what}, as nobody")


def _interpreter(version: str) -> str:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise InputError(f"the wheels are for Python {version}, and there is no python{version} on PATH")
    return found


def _dataset_images(dataset: str) -> Path:
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    for name in ("imagesTs", "imagesTr"):
        if raw and Path(raw, dataset, name).is_dir():
            return Path(raw, dataset, name)
    raise InputError(f"nnUNet_raw has no images of {dataset}; give some cases with -i")


def _lay_out(given: Path, settings: Settings, inputs: Path) -> None:
    """Lay the cases out as the platform does."""
    inputs.mkdir()
    as_files = Settings("", (), settings.channels, ending=settings.ending)
    for case in find_cases(as_files, given, given):
        for channel, image in enumerate(case.images):
            if settings.layout == "sockets":
                target = inputs / "images" / settings.inputs[channel] / f"{case.name}.mha"
            elif settings.layout == "case folders":
                target = inputs / case.name / f"{case.name}-{settings.inputs[channel]}{settings.ending}"
            else:
                target = inputs / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.name.endswith(settings.ending):
                shutil.copy(image, target)
            else:
                convert_image(image, target)


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file of a folder."""
    stats = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in stats}


def _compare(case: Case, expected: Path, settings: Settings) -> Iterator[Finding]:
    """Compare a segmentation with nnU-Net's, and its geometry with the image's."""
    output_type = settings.output_type
    whose = "nnunet-plugins predict" if settings.whole_volume else "nnU-Net"
    if not case.output.is_file():
        yield problem(f"{case.name}: there is no segmentation {case.output.name}", "look at the log above")
        return
    (ours, header), (theirs, _), image = read_labels(case.output), read_labels(expected), read_header(case.images[0])
    if ours.shape == theirs.shape:
        different = int((ours != theirs).sum())
        if different:
            yield problem(
                f"{case.name}: {different} voxels have another label than {whose} gives them", "report this bug"
            )
        else:
            yield ok(f"{case.name}: the same labels as {whose}'s, in every voxel")
    for what in ("size", *(("spacing", "origin", "direction") if keeps_geometry(case.output) else ())):
        found, wanted = (getattr(part, what) for part in (header, image))
        if len(found) != len(wanted) or any(
            abs(one - other) > 1e-6 * max(1, abs(other)) for one, other in zip(found, wanted, strict=True)
        ):
            yield problem(f"{case.name}: {what} {found} instead of the image's {wanted}", "report this bug")
    if ours.dtype.name != output_type:
        yield problem(f"{case.name}: its voxels are {ours.dtype.name}, not {output_type}", "report this bug")
