"""What a job does, line by line (tests/support/job_runs.py has the language)."""

from __future__ import annotations

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from support.job_runs import CALL, Run, words_of

LINES = """
do a; do b; do c => Succeeded
do a; do b!; undo b; undo a => Failed
do a; do b!; undo b; undo a!  => UndoFailed
do a; do b!; undo b; undo a!; retry; undo a => Failed
do a; do b!; undo b; undo a; retry; do a; do b => Succeeded
do a; do b!; undo b; undo a; restart; do a; do b => Succeeded
keep: do a; do b! => Failed
keep: do a; do b!; retry; do b; do c => Succeeded
keep: do a; do b!; cancel; undo b; undo a => Cancelled
keep: do a; do b!<cancel; undo b; undo a => Cancelled
a b/k c: do a; do b!; retry; do b; do c!; undo c; undo b; undo a => Failed
a b/k: do a; do b!; cancel; undo b; undo a => Cancelled
do a; verify a; do b; verify b => Succeeded
do a; verify a!; undo a => Failed
do a; verify a+5; idle; 5s; verify a; do b => Succeeded
a/c b/c: do a; do b; clean a; clean b => Succeeded
a/c b: do a; do b!; undo b; undo a => Failed
a/c b/c: do a; do b; clean a!; clean b => Succeeded
a/c b: do a; do b; clean a+5; cancel!; 5s; clean a => Succeeded
a/n b c/n: do a; do b; do c!; undo b => Failed
do a~; 1s; do a~; 2s; do a; do b => Succeeded
do a~; 1s; do a~; 2s; do a~; 5s; do a~; 15s; do a~; 30s; do a~; undo a => Failed
do a~; 1s; do a~; 2s; do a+1; 1s; do a~; 1s; do a => Succeeded
do a; do b+10; idle; 9s; idle; 1s; do b => Succeeded
do a; do b+10; cancel; undo b; undo a => Cancelled
do a?; idle; answer yes; do a => Succeeded
do a; do b?; cancel; undo b; undo a => Cancelled
do a; do b?; takeover; idle; answer yes; do b => Succeeded
do a?<cancel; undo a => Cancelled
do a? => Suspended
do a; answer yes!; retry!; restart!; do b => Succeeded
do a; do b; cancel!; retry!; answer x! => Succeeded
a: cancel; idle; cancel!; retry! => Cancelled
a: cancel; restart; do a => Succeeded
a b c: do a; do b<cancel; undo b; undo a => Cancelled
a b: do a; do b<cancel; undo b; undo a => Cancelled
a/c b/c: do a; do b<cancel; undo b; undo a => Cancelled
a b c: do a; cancel; undo a => Cancelled
a b: do a; do b!; cancel; undo b; undo a => Cancelled
a b: do a!<cancel; undo a => Cancelled
a b: do a; do b; => Succeeded
do a; do b!; undo b~; 1s; undo b; undo a+3; 3s; undo a => Failed
do a; do b!; undo b?; => UndoFailed
do a*; takeover; do a; do b => Succeeded
a b: kill; takeover; do a; do b => Succeeded
do a; do b*; takeover; do b*; takeover; do b; do c => Succeeded
do a; kill; takeover; do b!; undo b; undo a => Failed
do a; do b!; undo b*; takeover; undo b; undo a*; takeover; undo a => Failed
a b: do a; do b!; undo b; kill; takeover; undo a => Failed
do a; verify a*; takeover; verify a => Succeeded
a/c b/c: do a; do b; clean a*; takeover; clean a; clean b => Succeeded
a b: do a; do b*; cancel; takeover; undo b; undo a => Cancelled
a b: do a; kill; cancel; takeover; undo a => Cancelled
a b: kill; cancel; takeover => Cancelled
do a; do b%; takeover; do b; wakes; do c => Succeeded
do a; do b%; takeover; wakes; do b => Succeeded
do a%; cancel; takeover; undo a; wakes => Cancelled
do a; do b!; undo b%; takeover; undo b; undo a; wakes => Failed
"""


def lines() -> list[str]:
    return LINES.strip().splitlines()


@pytest.mark.parametrize("line", lines())
def test_line(line: str, timed: Database, clock: FakeClock) -> None:
    Run(line, timed, clock).play()


@pytest.mark.parametrize(
    "line", [line for line in lines() if all(CALL.match(word) for word in words_of(line))]
)
def test_line_in_one_turn(line: str, timed: Database, clock: FakeClock) -> None:
    """The same with the thread kept: a result and the next beginning are one write."""
    Run(line, timed, clock, turn_seconds=1000.0).play()
