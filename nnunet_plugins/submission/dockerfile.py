"""Read a Dockerfile for what would stop its build or its platform, without Docker."""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

from dockerfile_parse import DockerfileParser

from nnunet_plugins.doctor.findings import Finding, ok, problem, warning


def check_dockerfile(folder: Path) -> Iterator[Finding]:
    """Check the Dockerfile of a build context."""
    parser = DockerfileParser(path=str(folder / "Dockerfile"), cache_content=True)
    steps = [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]
    ignored = _patterns(folder / ".dockerignore")
    sources = [source for step in steps for source in _sources(*step)]
    wrong = 0
    for source in sources:
        if not list(folder.glob(source)):
            wrong += 1
            yield problem(f"it copies {source}, which is not in the folder", "export the submission again")
        elif any(fnmatch.fnmatch(source, pattern) for pattern in ignored):
            wrong += 1
            yield problem(f"it copies {source}, which .dockerignore leaves out", "take it out of .dockerignore")
    if not wrong:
        yield ok(f"all that it copies is there: {', '.join(sources)}")
    for instruction, value in steps:
        if instruction == "FROM":
            image = re.sub(r"^--\S+\s+", "", value).split()[0]
            if "@sha256:" in image or re.search(r":(?!latest$)[\w.-]+$", image):
                yield ok(f"its base image is pinned: {image}")
            else:
                yield warning(f"its base image {image} may be another one tomorrow", "give its tag or digest")
    users = [value for instruction, value in steps if instruction == "USER"]
    if users and users[-1].split(":")[0] not in ("root", "0"):
        yield ok(f"it runs as {users[-1]}")
    else:
        yield problem("it runs as root, which platforms refuse", "end it with USER and another name")
    if not any(instruction in ("ENTRYPOINT", "CMD") for instruction, _ in steps):
        yield problem("it starts nothing", "end it with an ENTRYPOINT")


def _sources(instruction: str, value: str) -> list[str]:
    """Return what a step takes from the build context."""
    if instruction == "RUN":
        return re.findall(r"--mount=type=bind,source=([^,\s]+)", value)
    if instruction not in ("COPY", "ADD") or "--from=" in value:
        return []
    words = [word for word in value.split() if not word.startswith("--")]
    return [word for word in words[:-1] if "://" not in word]


def _patterns(file: Path) -> list[str]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
