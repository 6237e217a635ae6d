"""The runbook's pages are whole, each is run by its tests, and errors and pages name each other."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import secondsite
from secondsite.base.errors import SecondsiteError
from support.runbook import DO, RUNBOOK, SECTIONS, SURE, WORKED, Page, pages, shows

ROOT = Path(__file__).resolve().parents[2]
PAGES = pages()
NAMED = re.compile(r"RUNBOOK\.md, ([a-z ]+)")


def actions() -> dict[str, str]:
    for module in pkgutil.walk_packages(secondsite.__path__, "secondsite."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {code: error.action for code, error in SecondsiteError.registry.items()}


def test_the_situations_that_must_have_a_page_have_one() -> None:
    assert {
        "lag grows",
        "store full",
        "damaged object",
        "source lost its tracking",
        "gateway lost",
        "rescue without a server",
    } <= {page.words for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.words)
def test_a_page_is_whole(page: Page) -> None:
    assert tuple(page.sections) == SECTIONS
    for section, text in page.sections.items():
        assert text.strip(), section
    for section in (SURE, DO, WORKED):
        assert page.steps(section), f"{page.title}: nothing is typed under {section}"
    assert any(step.expected for step in page.steps(WORKED)), "how is a reader to know?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.words)
def test_a_page_is_run_by_its_tests_whole(page: Page) -> None:
    assert page.tests
    for file, name in page.tests:
        text = (ROOT / file).read_text()
        [function] = [
            node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        body = ast.get_source_segment(text, function) or ""
        assert f'page("{page.words}")' in body, f"{name} does not open {page.title}"
        assert "steps(DO)" in body
        assert "be_sure(" in body or "steps(SURE)" in body
        assert "see_that_it_worked(" in body or "steps(WORKED)" in body


def test_errors_and_pages_name_each_other() -> None:
    by_words = {page.words: page for page in PAGES}
    known = actions()
    for code, action in known.items():
        for words in NAMED.findall(action):
            assert words in by_words, f"{code} names a page {words!r} that is not there"
            assert code in by_words[words].codes, f"{code} is not among the codes of {words}"
    emitted = set(re.findall(r'"([a-z-]+\.[a-z-]+)"', "".join(p.read_text() for p in _modules())))
    for page in PAGES:
        assert page.codes
        for code in page.codes:
            if code in known:
                assert NAMED.findall(known[code]) == [page.words], f"{code} does not name {page.title}"
            else:
                assert code in emitted, f"{page.title}: nothing emits {code}"


def _modules() -> list[Path]:
    return sorted((ROOT / "src" / "secondsite").rglob("*.py"))


def test_every_page_is_in_the_list_and_the_documents_lead_there() -> None:
    text = RUNBOOK.read_text()
    listed = re.findall(r"^\| .* \| \[(.+?)\]\((#[a-z-]+)\) \|$", text.split("\n## ")[0], re.MULTILINE)
    assert listed == [(page.title, page.anchor) for page in PAGES]
    anchors = {page.anchor for page in PAGES}
    assert set(re.findall(r"\]\((#[a-z-]+)\)", text)) <= anchors
    for document in ("README.md", "ARCHITECTURE.md", "docs/install.md"):
        assert "RUNBOOK.md)" in (ROOT / document).read_text()


def test_what_a_command_shows_is_compared_by_line() -> None:
    printed = "KEPT  POINTS\nshop       7  2026  point 3\n"
    assert shows(printed, "shop ... point 3")
    assert shows(printed, "shop 7 ...")
    assert not shows(printed, "shop")
    assert not shows(printed, "POINTS ... point 3")
