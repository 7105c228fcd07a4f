"""The platforms that a submission can be made for: one row each. Loads nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """A kind of submission.

    Attributes:
        name: on the command line.
        summary: one line for the help.
        layout: of the input images, see `settings.LAYOUTS`.
        templates: files to write, besides those that all have; each is made from the template of that name.
        container: whether it runs in a container.
    """

    name: str
    summary: str
    layout: str
    templates: tuple[str, ...]
    container: bool = True


_COMMON = ("README.md", "inference.py")
_DOCKER = (*_COMMON, "Dockerfile", ".dockerignore", "do_build.sh", "do_test_run.sh", "do_save.sh")

PLATFORMS = {
    row.name: row
    for row in (
        Platform(
            "grand-challenge", "an algorithm container for Grand Challenge, with its input sockets", "sockets", _DOCKER
        ),
        Platform(
            "mlcube",
            "a MedPerf model container and MLCube with one task, infer, as BraTS takes it",
            "case folders",
            (*_DOCKER, "mlcube.yaml", "container_config.yaml", "parameters.yaml"),
        ),
        Platform("docker", "a container that takes nnU-Net's own files in /input", "files", _DOCKER),
        Platform(
            "folder",
            "no container: wheels and predict.sh, for Kaggle-like challenges and in-house use",
            "files",
            (*_COMMON, "predict.sh"),
            container=False,
        ),
    )
}
