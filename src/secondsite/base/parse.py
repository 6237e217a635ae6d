"""Parsing what comes from outside, and what must be known before several threads parse."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec

# What decoding hostile JSON raises: msgspec's own errors, and two it lets through, for text that is nested
# without end and for strings that are not UTF-8 (found by fuzzing, msgspec 0.22).
JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_prepared: set[type[Any]] = set()
_preparing = threading.Lock()


def prepare_structs() -> list[str]:
    """Have msgspec know every struct that is imported by now; to be called before threads begin to decode.

    It finds out what a struct consists of when it first decodes one, and another thread that decodes one
    meanwhile takes what is half made: the process dies by SIGSEGV (msgspec 0.22; two gateways of three died
    so on a busy machine, and `tests/unit/base/test_parse.py` shows it). Costs some 30 ms, once.

    Returns the names of those that cannot be decoded, as they name what exists for type checkers only.
    """
    with _preparing:
        found = set(_below(msgspec.Struct)) - _prepared
        left = []
        for struct in found:
            try:
                msgspec.json.Decoder(struct)
            except (NameError, TypeError):
                left.append(f"{struct.__module__}.{struct.__qualname__}")
        _prepared.update(found)
    return sorted(left)


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for below in kind.__subclasses__():
        yield below
        yield from _below(below)
