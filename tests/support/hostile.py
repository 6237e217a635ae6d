"""Hostile bytes for decoders: samples changed byte by byte, and JSON changed value by value."""

from __future__ import annotations

import json
import random
from typing import Any

HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**40, 1e308, 0.5, "", "x", "\0", "../../etc",
    "é" * 300, "a" * 70_000, [], [[]], {}, {"": {}}, "9" * 5000, "2026-13-45T99:99:99", "0" * 32, "f" * 64,
]  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes set, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(5)
        if kind == 0 and place < len(out):
            out[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 1:
            del out[place : place + chance.choice([1, 4, 8, 100, 5000])]
        elif kind == 2:
            out[place:place] = out[place : place + chance.choice([1, 8, 64, 3000])]
        elif kind == 3:
            out[place:place] = chance.randbytes(chance.choice([1, 8, 200]))
        else:
            width = chance.choice([2, 4, 8])
            value = chance.choice(
                [0, 1, (1 << width * 8) - 1, 1 << (width * 8 - 1), chance.getrandbits(width * 8)]
            )
            out[place : place + width] = value.to_bytes(width, "little")
    return bytes(out)


def mutated_json(sample: Any, chance: random.Random) -> bytes:
    """A JSON text like the sample's, with some values exchanged for hostile ones; at times no JSON at all."""
    kind = chance.random()
    if kind < 0.05:
        return b"[" * 100_000
    if kind < 0.1:
        return chance.randbytes(chance.choice([0, 1, 50, 500]))
    text = json.dumps(changed(sample, chance)).encode("utf-8", "surrogatepass")
    return mutated(text, chance) if kind < 0.25 else text


def changed(value: Any, chance: random.Random) -> Any:
    """The value with one to three hostile changes somewhere in it."""
    for _ in range(chance.randint(1, 3)):
        value = _change(value, chance)
    return value


def _change(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        kind = chance.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, "unheard-of": 1}
        return {**value, key: _change(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        kind = chance.random()
        if kind < 0.15:
            return value + value
        if kind < 0.25:
            return value[:index] + value[index + 1 :]
        return [*value[:index], _change(value[index], chance), *value[index + 1 :]]
    if isinstance(value, str) and value and chance.random() < 0.5:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice("0aZ-/\0 é") + value[place + 1 :]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 4096, 2**32])
    return chance.choice(HOSTILE)
