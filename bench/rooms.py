"""The structure of the package as its imports show it.

    python -m bench.rooms

A room is a folder or a file at the top of `hpcmpq/`, an arrow a room whose files import another's, functions included;
a room's floor is one above the highest that it imports; a circle is a set of rooms that reach one another.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "hpcmpq"


def arrows() -> dict[str, set[str]]:
    """{room: rooms that it imports}."""
    files = {
        path: path.relative_to(PACKAGE).with_suffix("").parts[0] for path in sorted(PACKAGE.rglob("*.py"))
    }
    rooms = set(files.values()) - {"__init__"}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path, room in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            parts = [name.split(".") for name in names if name.startswith("hpcmpq.")]
            found.setdefault(room, set()).update(part[1] for part in parts if part[1] in rooms - {room})
    return {room: found[room] for room in sorted(rooms)}


def reachable(found: dict[str, set[str]], room: str) -> set[str]:
    """Rooms that are reached by one arrow or more."""
    reached: set[str] = set()
    waiting = list(found[room])
    while waiting:
        other = waiting.pop()
        if other not in reached:
            reached.add(other)
            waiting += found[other]
    return reached


def main() -> None:
    """Print rooms floor by floor, and the counts."""
    found = arrows()
    reached = {room: reachable(found, room) for room in found}
    circles = {
        frozenset(other for other in reached[room] if room in reached[other])
        for room in found
        if room in reached[room]
    }
    floors: dict[str, int] = {}
    while not circles and len(floors) < len(found):
        for room, others in found.items():
            if room not in floors and others <= floors.keys():
                floors[room] = 1 + max((floors[other] for other in others), default=0)
    for floor in sorted(set(floors.values())):
        print(f"floor {floor}: {', '.join(sorted(room for room in floors if floors[room] == floor))}")
    num_arrows = sum(map(len, found.values()))
    height = max(floors.values(), default=0)
    print(f"{len(found)} rooms, {num_arrows} arrows, {height} floors, {len(circles)} circles")
    for circle in circles:
        print(f"circle: {', '.join(sorted(circle))}")


if __name__ == "__main__":
    main()
