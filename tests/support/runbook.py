"""RUNBOOK.md as a program: its pages, what they have typed at which host, and what that must show."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from secondsite.lab import processes

RUNBOOK = Path(__file__).resolve().parents[2] / "RUNBOOK.md"
SURE, DO, WORKED = "How to be sure", "What to do", "How to know it worked"
SECTIONS = ("Symptom", SURE, DO, WORKED, "What you must not do")
STEP_SECONDS = 60.0
_PROMPT = re.compile(r"([A-Z])# (.*)")
_TEST = re.compile(r"^<!-- run by (tests/[\w/]+\.py)::(\w+) -->$", re.MULTILINE)


@dataclass
class Step:
    """A command at a host, and lines of what it must print (``...`` stands for anything)."""

    host: str
    command: str
    expected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """One situation."""

    title: str
    tests: tuple[tuple[str, str], ...]  # file and function
    codes: tuple[str, ...]  # of errors and events that send people here
    sections: dict[str, str]

    @property
    def words(self) -> str:
        """As texts elsewhere name it: ``store full``."""
        return self.title.lower()

    @property
    def anchor(self) -> str:
        """As links lead to it: ``#store-full``."""
        return "#" + re.sub(r"[^a-z0-9 -]", "", self.words).replace(" ", "-")

    def steps(self, section: str) -> list[Step]:
        """What the section has typed, in order."""
        found: list[Step] = []
        for line in self.sections[section].splitlines():
            if not line.startswith("    "):
                continue
            typed = _PROMPT.fullmatch(line.strip())
            if typed:
                found.append(Step(typed[1], typed[2]))
            else:
                found[-1].expected.append(line.strip())
        return found


def pages(text: str | None = None) -> list[Page]:
    """Every page, in order."""
    found = []
    for part in re.split(r"^## ", text if text is not None else RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        head, *rest = re.split(r"^### ", body, flags=re.MULTILINE)
        sections = {name: content for name, _, content in (one.partition("\n") for one in rest)}
        codes = re.search(r"^Codes: (.*)$", head, re.MULTILINE)
        names = tuple(re.findall(r"`([a-z0-9.-]+)`", codes[1])) if codes else ()
        found.append(Page(title, tuple(_TEST.findall(head)), names, sections))
    return found


def page(words: str) -> Page:
    """One page, by its title in any case."""
    return next(one for one in pages() if one.words == words)


# Runs a line at a host as root's shell would: (host, line) -> (exit code, what was printed)
RunLine = Callable[[str, str], tuple[int, str]]


def walk(steps: list[Step], run: RunLine, *, repeat: bool, evidence: Callable[[], str] = str) -> list[str]:
    """Type the steps one after the other; returns what each printed.

    repeat: a step that shows something is typed again until it does, as the page tells its reader to. Never
    for steps that change something.
    """
    return [_type(step, run, repeat=repeat and bool(step.expected), evidence=evidence) for step in steps]


def _type(step: Step, run: RunLine, *, repeat: bool, evidence: Callable[[], str]) -> str:
    last = ""

    def typed() -> str | None:
        nonlocal last
        code, last = run(step.host, step.command)
        missing = [line for line in step.expected if not shows(last, line)]
        if not repeat:
            assert not missing, f"{step.host}# {step.command}\n{last}\ndoes not show {missing}\n{evidence()}"
            assert code == 0 or step.expected, f"{step.host}# {step.command}\nended with {code}:\n{last}"
        return None if missing else last or " "

    return processes.wait_until(
        typed,
        what=f"{step.host}# {step.command} to show {step.expected}",
        root=Path("/"),
        seconds=STEP_SECONDS,
        poll_seconds=0.3,
        evidence=lambda: f"{last}\n{evidence()}",
    )


def shows(output: str, expected: str) -> bool:
    """Whether a line of the output is the expected one: ``...`` is anything, white space any white space."""
    parts = [r"\s+".join(re.escape(word) for word in part.split()) for part in re.split(r"\.\.\.", expected)]
    wanted = re.compile(r"\s*.*\s*".join(parts))
    return any(wanted.fullmatch(line.strip()) for line in output.splitlines())
