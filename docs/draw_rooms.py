"""Draw the rooms of the package and what they import as an SVG, from the imports: `python docs/draw_rooms.py`."""

import ast
from pathlib import Path

import networkx
from draw_fabric import svg

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nnunet_plugins"
FILE = ROOT / "docs" / "images" / "rooms.svg"
COLUMN, ROW, BOX = 130, 62, (112, 28)
DOOR = "cli"
BESIDE = (DOOR, "forecast")
"""Files beside the rooms that are as much as one; what else lies there is for all, and not drawn."""


def imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions, and by its name.

    Raises:
        ValueError: for a relative import, which names no module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{file}: a relative import: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {name.value for name in node.args if isinstance(name, ast.Constant)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms() -> "networkx.DiGraph[str]":
    """Which room imports which."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(BESIDE)
    graph.add_nodes_from(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for module in imports(file):
            other = module.removeprefix("nnunet_plugins.").split(".")[0]
            if module.startswith("nnunet_plugins.") and {room, other} <= set(graph) and room != other:
                graph.add_edge(room, other)
    return graph


def draw() -> str:
    """Return the drawing as SVG text: every room above all that it imports; blue ones have commands.

    A line that follows from others is left out.

    Raises:
        networkx.NetworkXError: if rooms import each other.
    """
    lines = networkx.transitive_reduction(rooms())
    lines.remove_node(DOOR)  # whose lines would go everywhere
    height: dict[str, int] = {}
    for room in reversed(list(networkx.lexicographical_topological_sort(lines))):
        height[room] = 1 + max((height[other] for other in lines[room]), default=-1)
    for room in networkx.isolates(lines):
        height[room] = max(height.values())
    floors = [sorted(room for room in height if height[room] == floor) for floor in range(max(height.values()) + 1)]
    widest = max(map(len, floors))
    place: dict[str, tuple[int, int]] = {}
    for number, floor in enumerate(floors):
        # Each stands above the middle of what it imports, as far as there is room.
        floor.sort(key=lambda room: (sum(place[one][0] for one in lines[room]) / max(1, len(lines[room])), room))
        for column, room in enumerate(floor):
            x = 70 + round((column + (widest - len(floor)) / 2) * COLUMN)
            place[room] = (x, 30 + (len(floors) - number) * ROW)
    width = widest * COLUMN + 10
    behind_door = imports(PACKAGE / f"{DOOR}.py")
    doors = [room for room in height if f"nnunet_plugins.{room}.command_line" in behind_door]
    parts = [
        f'<rect x="14" y="16" width="{width - 28}" height="{BOX[1]}" rx="6" fill="#f0f0f0"/>',
        f'<text x="{width // 2}" y="34">cli: the door to all rooms with commands</text>',
    ]
    for room, other in sorted(lines.edges):
        (x1, y1), (x2, y2) = place[room], place[other]
        y1, y2 = y1 + BOX[1] // 2, y2 - BOX[1] // 2
        bend = (y2 - y1) // 2
        shape = f"M{x1},{y1} C{x1},{y1 + bend} {x2},{y2 - bend} {x2},{y2}"
        parts.append(f'<path d="{shape}" stroke="#888888" marker-end="url(#along)"/>')
    for room, (x, y) in sorted(place.items()):
        left, top = x - BOX[0] // 2, y - BOX[1] // 2
        fill = "#cfe8f7" if room in doors else "#fbe0b5" if room not in BESIDE else "#f0f0f0"
        parts.append(f'<rect x="{left}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="{fill}"/>')
        parts.append(f'<text x="{x}" y="{y + 4}">{room}</text>')
    label = "The rooms of the package, each above those that it imports"
    return svg(width, (len(floors) + 1) * ROW, label, parts)


if __name__ == "__main__":
    FILE.write_text(draw())
    print(FILE)
