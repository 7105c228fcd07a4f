"""Draw how MetaSeg and NISF are trained and fitted, as an SVG: `python docs/draw_implicit.py`.

The sizes are those of the networks that the code builds.
"""

from pathlib import Path

from draw_autofocus import text, title
from draw_fabric import FILL, arrow, box, svg

from nnunet_plugins.networks.metaseg import MetaSeg
from nnunet_plugins.networks.nisf import NISF

FILE = Path(__file__).parent / "images" / "implicit.svg"
GREY, BLUE, ORANGE = FILL.values()
SMALL, WIDE = (96, 44), (150, 44)
PATCH = (48, 64, 48)


def metaseg(top: int) -> list[str]:
    """MetaSeg: what is fitted is orange, what is learned and stays is blue."""
    network = MetaSeg(1, 3, patch_size=PATCH)
    width, layers = network.head.in_features, len(network.layers)
    y, low = top + 60, top + 140
    return [
        title(20, top, "MetaSeg: all weights of the coordinate network are fitted to the image"),
        box(80, y, ("place", "x, y, z"), GREY, SMALL),
        arrow(128, y, 175, y),
        box(250, y, (f"{layers} sine layers", f"{width} wide"), ORANGE, WIDE),
        arrow(325, y, 385, y),
        box(460, y, ("linear", "to intensities"), ORANGE, WIDE),
        arrow(535, y, 595, y),
        box(670, y, ("image", "compared, fitted"), GREY, WIDE),
        arrow(325, y + 14, 385, low),
        box(460, low, ("head", "two linear maps"), BLUE, WIDE),
        arrow(535, low, 595, low),
        box(670, low, ("labels", "read off at the end"), GREY, WIDE),
        text(250, low + 4, "from weights learned for it"),
    ]


def nisf(top: int) -> list[str]:
    """NISF: only the code is fitted."""
    network = NISF(1, 3, patch_size=PATCH)
    y, low = top + 60, top + 140
    return [
        title(20, top, "NISF: the weights stay, a code is fitted to the image"),
        box(80, y, ("place", "x, y, z"), GREY, SMALL),
        box(80, low, ("code", f"{network.width} numbers"), ORANGE, SMALL),
        arrow(128, y, 175, y),
        arrow(128, low, 175, y + 14),
        box(250, y, (f"{len(network.layers)} Gabor layers", f"{network.width} wide"), BLUE, WIDE),
        arrow(325, y, 385, y),
        box(460, y, ("linear, sigmoid", "to intensities"), BLUE, WIDE),
        arrow(535, y, 595, y),
        box(670, y, ("image", "compared, fitted"), GREY, WIDE),
        arrow(325, y + 14, 385, low),
        box(460, low, ("linear", "to logits"), BLUE, WIDE),
        arrow(535, low, 595, low),
        box(670, low, ("labels", "read off at the end"), GREY, WIDE),
    ]


def draw() -> str:
    """Return the drawing as SVG text."""
    legend = [
        text(20, 430, "orange: gradient steps on the image change it, in training and at inference", "small left"),
        text(430, 430, "blue: learned in training alone", "small left"),
    ]
    label = "MetaSeg fits all weights of a coordinate network to an image, NISF a code; both give labels along"
    return svg(780, 450, label, [*metaseg(28), *nisf(238), *legend])


if __name__ == "__main__":
    FILE.write_text(draw())
    print(FILE)
