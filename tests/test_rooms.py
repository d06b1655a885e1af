"""The library's rooms import one another in one direction."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssv2_report"


def imports_of(path):
    "Modules of the library that a module imports, also inside of functions."
    package, found = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {tuple(name[1:]) for name in names if name[0] == PACKAGE.name}
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            parts = [*package[: len(package) - node.level + 1], *parts]
        elif parts.pop(0) != PACKAGE.name:
            continue
        for alias in node.names:
            inside = PACKAGE.joinpath(*parts, alias.name)
            found.add((*parts, alias.name) if inside.with_suffix(".py").is_file() else (*parts,))
    return {".".join(name) for name in found if name}


def library():
    paths = [p for p in PACKAGE.rglob("*.py") if p.stem not in ("__init__", "_modidx")]
    name = lambda p: ".".join(p.relative_to(PACKAGE).with_suffix("").parts)
    return {name(p): imports_of(p) for p in paths}


def rooms():
    "Names of the rooms, from the table that contributors read."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"(?m)^\| `(\w+)` \|", text)


def room_of(module):
    return "cli" if module == "command" else module.split(".")[0]


def test_every_room_is_in_the_table():
    assert {room_of(module) for module in library()} == {*rooms()}


def test_no_room_imports_one_below_it():
    order = rooms()
    upwards = [
        f"{module} imports {other}"
        for module, others in library().items()
        for other in others
        if order.index(room_of(other)) > order.index(room_of(module))
    ]
    assert not upwards


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter(library()).prepare()


def test_a_circle_would_be_found():
    from graphlib import CycleError

    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
