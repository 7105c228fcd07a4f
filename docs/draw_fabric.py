"""Draw FIRENet with its fabric as an SVG, from the topology the code builds: `python docs/draw_fabric.py`."""

from pathlib import Path

from nnunet_plugins.networks.fabric import Node, cell_channels, fabric_inputs

FILE = Path(__file__).parent / "images" / "firenet.svg"
WIDTH, DEPTH, CHANNELS = 3, 4, 64
COLUMN, ROW, LEFT, TOP = 150, 110, 190, 250
BOX = (84, 44)
# Okabe and Ito's colour-blind safe palette.
FILL = {32: "#f0f0f0", 64: "#cfe8f7", 128: "#fbe0b5"}
LINES = {"along": "#444444", "down": "#d55e00", "up": "#0072b2", "shortcut": "#009e73"}


def place(node: Node) -> tuple[int, int]:
    """Centre of a node in pixels."""
    return LEFT + node.column * COLUMN, TOP + (node.branch - 1) * ROW


def kind(source: Node, target: Node) -> str:
    """What an edge does: it goes along a branch, down or up, or is a dense shortcut."""
    if source.branch < target.branch:
        return "down"
    if source.branch > target.branch:
        return "up"
    return "along" if target.column - source.column == 1 else "shortcut"


def edge(source: Node, target: Node) -> str:
    """One arrow; shortcuts bend around the cells they skip."""
    (x1, y1), (x2, y2) = place(source), place(target)
    x1, x2 = x1 + BOX[0] // 2, x2 - BOX[0] // 2
    name = kind(source, target)
    shape = f"M{x1},{y1} L{x2},{y2}"
    if name == "shortcut":
        height = 34 + 7 * (target.column - source.column)
        shape = f"M{x1 - 20},{y1 - BOX[1] // 2} C{x1},{y1 - height} {x2},{y1 - height} {x2 + 20},{y2 - BOX[1] // 2}"
    return f'<path d="{shape}" stroke="{LINES[name]}" marker-end="url(#{name})"/>'


def box(x: int, y: int, lines: tuple[str, str], fill: str, size: tuple[int, int] = BOX) -> str:
    """A labelled box with two lines of text around its centre."""
    left, top = x - size[0] // 2, y - size[1] // 2
    return (
        f'<rect x="{left}" y="{top}" width="{size[0]}" height="{size[1]}" rx="6" fill="{fill}"/>'
        f'<text x="{x}" y="{y - 4}">{lines[0]}</text><text x="{x}" y="{y + 13}" class="small">{lines[1]}</text>'
    )


def arrow(x1: int, y1: int, x2: int, y2: int, label: str = "") -> str:
    """A grey arrow of the encoder-decoder, with a label beside it."""
    text = f'<text x="{(x1 + x2) // 2}" y="{(y1 + y2) // 2 - 6}" class="small">{label}</text>' if label else ""
    return f'<path d="M{x1},{y1} L{x2},{y2}" stroke="#444444" marker-end="url(#along)"/>{text}'


def svg(width: int, height: int, label: str, parts: list[str]) -> str:
    """Put a drawing's parts into a page with its styles and arrow heads; `label` is for those who cannot see it."""
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" style="fill:{colour};stroke:none"/></marker>'
        for name, colour in LINES.items()
    )
    style = (
        "text{font:13px sans-serif;text-anchor:middle;fill:#222}.small{font-size:11px;fill:#444}"
        ".left{text-anchor:start}path{fill:none;stroke-width:1.6}rect{stroke:#444}"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">\n<style>{style}</style>\n'
        f'<defs>{markers}</defs>\n<rect width="100%" height="100%" fill="white" style="stroke:none"/>\n{body}\n</svg>\n'
    )


def draw() -> str:
    """Return the drawing as SVG text."""
    inputs = fabric_inputs(WIDTH, DEPTH, CHANNELS)
    end = DEPTH + 1
    right = LEFT + end * COLUMN
    half_width, half_height = BOX[0] // 2, BOX[1] // 2
    parts = [edge(source, target) for target, sources in inputs.items() for source in sources]
    for j in range(1, WIDTH + 1):
        parts.append(box(*place(Node(0, j)), (f"stem {j}", f"1/{2 ** (j + 1)}, {CHANNELS} ch"), FILL[CHANNELS]))
        if j > 1:
            (x, y), above = place(Node(0, j)), place(Node(0, j - 1))[1]
            parts.append(arrow(x, above + half_height, x, y - half_height))
    for target in inputs:
        channels = cell_channels(target, DEPTH, CHANNELS)
        label = f"cell {target.column},{target.branch}" if target.column < end else "merge"
        parts.append(box(*place(target), (label, f"{channels} ch"), FILL[channels]))
    for level, (width, scale) in enumerate([(32, "1/1"), (64, "1/2")]):
        y = 50 + level * 80
        parts.append(box(LEFT, y, ("ResUnit", f"{scale}, {width} ch"), FILL[width]))
        parts.append(box(right, y, ("ResUnit", f"{scale}, {width} ch"), FILL[width]))
        parts.append(arrow(LEFT + half_width, y, right - half_width, y, f"conv block {width}, gated sum (WRS)"))
        below = 50 + (level + 1) * 80 if level == 0 else TOP
        parts.append(arrow(LEFT, y + half_height, LEFT, below - half_height))
        parts.append(arrow(right, below - half_height, right, y + half_height))
    parts.append(f'<text x="{LEFT - 24}" y="94" class="small">pool</text>')
    parts.append(f'<text x="{right + 14}" y="94" class="small">up</text>')
    parts.append(arrow(LEFT - 110, 50, LEFT - half_width, 50, "image"))
    parts.append(arrow(right + half_width, 50, right + 120, 50, "1x1x1, logits"))
    legend = [
        ("along", "same scale"),
        ("down", "down: strided convolution"),
        ("up", "up: linear interpolation"),
        ("shortcut", "dense shortcut"),
    ]
    height = TOP + WIDTH * ROW
    for number, (name, text) in enumerate(legend):
        x = LEFT - 40 + number * 190
        parts.append(f'<path d="M{x},{height - 38} L{x + 34},{height - 38}" stroke="{LINES[name]}"/>')
        parts.append(f'<text x="{x + 40}" y="{height - 34}" class="small left">{text}</text>')
    return svg(right + 150, height, "FIRENet: encoder, dense residual fabric, decoder", parts)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(draw())
    print(FILE)
