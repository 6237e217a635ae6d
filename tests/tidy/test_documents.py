"""The documents say what is so: tests they name exist, pictures are the code's, links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from secondsite.model import items
from secondsite.model.diagrams import state_diagram
from secondsite.model.states import TABLE, ItemState

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "".join(path.read_text() for path in DOCUMENTS))
    assert len(named) > 30
    for file, name in named:
        tree = ast.parse(_text(file))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert not name or name in defined, f"{file} has no {name}"


def test_every_guarantee_has_a_test() -> None:
    rows = re.findall(r"^\| (G\d+) \|.*$", _text("ARCHITECTURE.md"), re.MULTILINE)
    assert rows == [f"G{number}" for number in range(1, len(rows) + 1)]
    for row in re.findall(r"^\| G\d+ \|.*\|(.*)\|$", _text("ARCHITECTURE.md"), re.MULTILINE):
        assert "tests/" in row


def test_every_rule_of_the_design_has_a_test() -> None:
    rows = re.findall(r"^\| (\d+) .*?\|(.*)\|$", _text("ARCHITECTURE.md"), re.MULTILINE)
    assert {int(number) for number, _ in rows} == set(range(1, 18))
    for number, proof in rows:
        assert "::" in proof, f"rule {number} names no test"


def test_the_state_diagrams_are_the_tables() -> None:
    """A gateway's own, and that of items at the server."""
    for name, wanted in {
        "ARCHITECTURE.md": state_diagram(TABLE, ItemState.ENABLING),
        "docs/protected-items.md": state_diagram(items.TABLE, items.ProtectedState.UNPROTECTED),
    }.items():
        drawn = re.findall(r"```mermaid\n(stateDiagram.*?)```", _text(name), re.DOTALL)
        assert drawn == [wanted], name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"docs/[a-z0-9/-]+\.md", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_every_decision_is_listed() -> None:
    for path in ROOT.glob("docs/adr/*.md"):
        assert path.name in _text("ARCHITECTURE.md")


def test_every_package_is_in_the_layout() -> None:
    layout = _text("ARCHITECTURE.md").split("## Layout")[1]
    for package in (ROOT / "src" / "secondsite").iterdir():
        if package.is_dir() and (package / "__init__.py").exists():
            assert f"    {package.name}/" in layout


@pytest.mark.parametrize("package", ["gateway", "cli"])
def test_every_part_of_a_large_package_is_in_the_layout_below_it(package: str) -> None:
    layout = _text("ARCHITECTURE.md").split("## Layout")[1]
    below = re.split(r"\n    (?=\w)", layout.split(f"\n    {package}/")[1])[0]
    parts = {path.parent.name for path in (ROOT / "src/secondsite" / package).glob("*/__init__.py")}
    assert set(re.findall(r"^      (\w+)/", below, re.MULTILINE)) == parts
