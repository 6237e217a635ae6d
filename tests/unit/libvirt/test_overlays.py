"""When an image is called plain, and what is durable by then; contract tests have real ones."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import libvirt
import pytest

from secondsite.fabrics.libvirt import overlays


@pytest.mark.parametrize("needs_flush", [False, True])
def test_what_is_called_plain_was_synced_after_it_was_seen_so(
    needs_flush: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU writes tables of a pull at any time, to the host's cache: what is seen may be there alone."""
    paths = [str(tmp_path / name) for name in ("vda", "vdb")]
    for path in paths:
        Path(path).touch()
    cached, durable = set[str](), set[str]()

    def look(path: str) -> bool:
        if not needs_flush:
            cached.add(path)  # just then
        return path in cached

    def sync(file: int) -> None:
        name = str(Path(f"/proc/self/fd/{file}").readlink())
        durable.update(cached & {name})

    monkeypatch.setattr(overlays, "is_plain", look)
    monkeypatch.setattr(os, "fsync", sync)
    running = [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
    suspended = SimpleNamespace(
        state=lambda: running, suspend=lambda: cached.update(paths), resume=lambda: None
    )
    assert overlays.make_durable(suspended, paths) == ""
    assert durable == set(paths)
