"""Every mark at which a process can be made to die is in the kill list of a test."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import secondsite
from secondsite.base.crash import MARKS

ROOT = Path(__file__).resolve().parents[2]
_MADE = re.compile(r'^([A-Z_]+) = mark\("([^"]+)"\)$', re.MULTILINE)
_NAMED = re.compile(r'"([a-z-]+\.[a-z-]+)[":]')
_CONSTANT = re.compile(r"\b[a-z_]+\.([A-Z][A-Z_]+)\b")  # of a module, not of a class
_IMPORTED = re.compile(r"\b[A-Z][A-Z_]+\b")
_LISTED = re.compile(r"^.*(?:startswith|_marks)\(.*$", re.MULTILINE)
_KIND = re.compile(r'"([a-z-]+)\.')


def _sources() -> dict[str, list[str]]:
    """Of each mark, the constants that hold it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src" / "secondsite").rglob("*.py")):
        for constant, name in _MADE.findall(path.read_text()):
            found.setdefault(name, []).append(constant)
    return found


def test_every_mark_is_killed_at_by_a_test() -> None:
    for module in pkgutil.walk_packages(secondsite.__path__, "secondsite."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    made = _sources()
    assert set(made) == MARKS, "a mark is a constant of its module, on a line of its own"
    tests = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]
    # by its name, by its constant, or by how the names of a list of all of a kind begin
    names: set[str] = set()
    for text in (path.read_text() for path in tests):
        names.update(_NAMED.findall(text))
        names.update(_CONSTANT.findall(text))
        for line in re.findall(r"^from secondsite\.[^(\n]*import (.*)$", text, re.MULTILINE):
            names.update(_IMPORTED.findall(line))
        for line in _LISTED.findall(text):
            names.update(f"{kind}." for kind in _KIND.findall(line))
    seen = {name for name, constants in made.items() if {name, f"{name.split('.')[0]}.", *constants} & names}
    assert seen == MARKS, f"nothing is killed at {sorted(MARKS - seen)}"
