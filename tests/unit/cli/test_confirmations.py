"""Sentences that a person types: asked for on a terminal only, and taken word for word."""

from __future__ import annotations

import sys

import pytest

from secondsite.cli.items.failover import ask_for
from secondsite.model import confirmations

SENTENCE, WHY = confirmations.kept("shop"), "A commit ends the time in which another point can be chosen."


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: typed)


@pytest.mark.parametrize("typed", [SENTENCE, f" {SENTENCE}. "])
def test_what_is_typed_word_for_word_is_said(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_a_terminal(monkeypatch, typed)
    assert ask_for("shop", SENTENCE, WHY) == typed
    assert capsys.readouterr().err == f"{WHY}\nTo go on, type: {SENTENCE}\n"


@pytest.mark.parametrize("typed", ["", "yes", "y", SENTENCE.replace("shop", "mail")])
def test_anything_else_is_not(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch, typed)
    with pytest.raises(confirmations.ConfirmationMissing, match="was not confirmed"):
        ask_for("shop", SENTENCE, WHY)


def test_a_script_is_told_the_sentence_and_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: pytest.fail("nobody is there to answer"))
    with pytest.raises(confirmations.ConfirmationMissing) as refused:
        ask_for("shop", SENTENCE, WHY)
    assert refused.value.fields["confirm"] == SENTENCE
