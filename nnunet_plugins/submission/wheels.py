"""The Python packages that a submission needs: exactly those of this environment, as a lock file and as wheels.

This package's own wheel, and those of other packages that networks come from, are made here from their installed files,
because they may have come from anywhere. The others are asked of pip, which downloads or builds them.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

import nnunet_plugins
from nnunet_plugins.errors import InputError

OWN = "nnunet-plugins"
REQUIREMENTS = "requirements.txt"
_OF_THE_INSTALLER = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_STAMP = (2020, 1, 1, 0, 0, 0)  # so that the same files make the same wheel


class WheelError(InputError):
    """The packages of a submission cannot be collected."""


def locked(roots: Sequence[str] = (OWN,)) -> dict[str, str]:
    """Return the installed versions of some packages and all that they need, by name.

    Raises:
        WheelError: if one that is needed is not installed.
    """
    found: dict[str, str] = {}
    todo: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in roots]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise WheelError(f"{name} is needed, but not installed here; install it: pip install {name}") from None
        found[canonicalize_name(name)] = package.version
        for text in package.requires or ():
            needed = Requirement(text)
            if _applies(needed, extras):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return dict(sorted(found.items()))


def _applies(needed: Requirement, extras: Iterable[str]) -> bool:
    environment = {name: str(value) for name, value in default_environment().items()}
    return not needed.marker or any(needed.marker.evaluate({**environment, "extra": e}) for e in ("", *extras))


def write_own_wheel(folder: Path) -> Path:
    """Write this package's wheel into a folder and return its path."""
    package = Path(nnunet_plugins.__file__).parent
    about = metadata.distribution(OWN)
    info = f"{OWN.replace('-', '_')}-{about.version}.dist-info"
    files = {f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes() for path in _sources(package)}
    # Python reads these beside the package, not inside it; an editable install has them only inside.
    for start in (f"{package.name}.pth", f"{package.name}.start"):
        inside, beside = files.pop(f"{package.name}/{start}", None), package.parent / start
        content = inside if inside is not None else beside.read_bytes()
        files[start] = content
    tags = ["Wheel-Version: 1.0", f"Generator: {OWN}", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
    files[f"{info}/WHEEL"] = "\n".join(tags).encode()
    for part in ("METADATA", "entry_points.txt"):
        files[f"{info}/{part}"] = (about.read_text(part) or "").encode()
    for path in about.files or ():
        if path.parts[0].endswith(".dist-info") and "licenses" in path.parts:
            files[f"{info}/{'/'.join(path.parts[1:])}"] = path.read_binary()
    return _zip(files, info, "py3-none-any", folder)


def write_wheel(name: str, folder: Path) -> Path:
    """Write the wheel of another installed package into a folder, from where it is installed, and return its path.

    Raises:
        WheelError: if that is not possible: it is not only Python, or pip cannot build the checkout it is installed as.
    """
    about = metadata.distribution(name)
    files = {}
    for path in about.files or ():
        if path.parts[0] != ".." and "__pycache__" not in path.parts and path.name not in _OF_THE_INSTALLER:
            files[path.as_posix()] = path.read_binary()
    infos = {path.split("/")[0] for path in files if path.endswith(".dist-info/METADATA")}
    tags = re.findall(r"^Tag: (\S+)$", about.read_text("WHEEL") or "", flags=re.MULTILINE)
    in_place = json.loads(about.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    if in_place or len(infos) != 1 or len(tags) != 1:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "-w", str(folder)]
        # Built with what is here, as where it was installed.
        done = subprocess.run([*command, "--no-build-isolation", _origin(name) or f"{name}=={about.version}"])
        found = matching({canonicalize_name(name): about.version}, folder)
        if done.returncode or not found:
            raise WheelError(f"no wheel of {name} could be made, which a network comes from; pip's reason stands above")
        return found[canonicalize_name(name)]
    return _zip(files, infos.pop(), tags[0], folder)


def _zip(files: dict[str, bytes], info: str, tag: str, folder: Path) -> Path:
    """Write a wheel of some files, those of its `info` folder among them, and its record."""
    record = f"{info}/RECORD"
    files.pop(record, None)
    files[record] = "".join(f"{file},{_record_hash(data)},{len(data)}\n" for file, data in files.items()).encode()
    files[record] += f"{record},,\n".encode()
    target = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in files.items():
            entry = zipfile.ZipInfo(file, _STAMP)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def _sources(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def collect(versions: Mapping[str, str], folder: Path) -> None:
    """Put a wheel of every package that lacks one into a folder; pip says what it does.

    Args:
        versions: from `locked`.
        folder: may hold wheels already, which are kept if they are of the right version.

    Raises:
        WheelError: if pip cannot get or build one.
    """
    there = matching(versions, folder)
    missing = {name: version for name, version in versions.items() if name != OWN and name not in there}
    if not missing:
        return
    wanted = [_origin(name) or f"{name}=={version}" for name, version in missing.items()]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "-w", str(folder)]
    for index in indexes(missing):
        command += ["--extra-index-url", index]
    try:
        subprocess.run([*command, *wanted], check=True)
    except subprocess.CalledProcessError as error:
        raise WheelError(
            f"pip could not collect the packages (exit code {error.returncode}; its reason stands above). With "
            "--no-wheels they are left to `docker build`, or to whoever installs requirements.txt"
        ) from error


def matching(versions: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Return the wheels in a folder that are of these versions, by package."""
    found: dict[str, Path] = {}
    for wheel in sorted(folder.glob("*.whl")):
        name, version, *_ = parse_wheel_filename(wheel.name)
        wanted = versions.get(name)
        if wanted and (str(version) == wanted or (_is_from_elsewhere(name) and _same_public(version, wanted))):
            found[name] = wheel
    return found


_PYTORCH = "https://download.pytorch.org/whl/"
_OF_PYTORCH = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton")


def indexes(versions: Mapping[str, str]) -> list[str]:
    """Return the indexes, besides the usual one, that have builds such as 2.9.0+cpu, or another kind of GPU's.

    The usual index would give its own build of that version.
    """
    builds = {version.partition("+")[2] for name, version in versions.items() if name in _OF_PYTORCH}
    return [f"{_PYTORCH}{build}" for build in sorted(builds) if build]


def _is_from_elsewhere(name: str) -> bool:
    """Tell whether an installed package came from no index; built again, the local part of its version may change."""
    try:
        return _origin(name) is not None
    except metadata.PackageNotFoundError:
        return False


def _same_public(one: Version, other: str) -> bool:
    return one.public == Version(other).public


def _origin(name: str) -> str | None:
    """Return where a package came from if not from an index: a checkout, a repository, a file."""
    text = metadata.distribution(name).read_text("direct_url.json")
    if text is None:
        return None
    origin = json.loads(text)
    url = str(origin["url"])
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return f"{name} @ {url}"


def write_requirements(versions: Mapping[str, str], wheels: Path, file: Path) -> None:
    """Write the lock file; if the wheels of all packages are there, they are pinned by their hashes as well."""
    there = matching(versions, wheels)
    lines = [f"--extra-index-url {index}" for index in indexes(versions)] if len(there) < len(versions) else []
    for name, version in versions.items():
        line = f"{name}=={version}"
        if len(there) == len(versions):
            line = f"{name}=={parse_wheel_filename(there[name].name)[1]} --hash=sha256:{sha256(there[name])}"
        lines.append(line)
    file.write_text("\n".join(lines) + "\n")


def sha256(path: Path) -> str:
    """Return a file's hash, as hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
