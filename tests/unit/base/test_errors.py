"""Errors say what happened, why, and what to do, and survive the way through JSON."""

from __future__ import annotations

from secondsite.base.errors import InvalidInput, Outcome, RemoteError
from secondsite.base.units import format_bytes, format_seconds


def test_sentences_are_filled_in() -> None:
    error = InvalidInput(what="the frequency '5x'", why="the unit is not s, min or h")
    assert str(error) == "the frequency '5x' is not valid: the unit is not s, min or h"
    assert error.sentences()[2].startswith("Correct the frequency '5x'")
    assert not error.retryable


def test_an_error_of_another_process_keeps_its_words() -> None:
    original = InvalidInput(what="x", why="y")
    copy = RemoteError(original.as_dict())
    assert str(copy) == str(original)
    assert copy.sentences() == original.sentences()
    assert copy.remote_outcome is Outcome.USAGE
    assert copy.as_dict()["code"] == "input.invalid"


def test_a_remote_outcome_we_do_not_know_is_a_failure() -> None:
    assert RemoteError({"outcome": "exploded"}).remote_outcome is Outcome.FAILED


def test_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]
    assert [format_seconds(n) for n in (0.0123, 5.25, 75, 3700)] == ["12 ms", "5.2 s", "1:15", "1:01:40"]
