"""Writing TOML: what a configuration of ours needs of it."""

from __future__ import annotations

import json
from collections.abc import Mapping


def encode_toml(settings: Mapping[str, object], path: str = "") -> str:
    """A mapping of strings, numbers, booleans and mappings as TOML; tables after plain values."""
    plain, tables = [], []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            table = f"{path}.{name}" if path else name
            tables.append(f"\n[{table}]\n{encode_toml(value, table)}")
        else:
            # TOML writes strings, whole numbers and booleans as JSON does
            plain.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain + tables)
