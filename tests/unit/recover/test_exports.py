"""Exports whose process or volume fails in ways that are no errors of ours."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from secondsite.base import files
from secondsite.base.clock import SystemClock
from secondsite.gateway.messages.gateway import ExportStatus
from secondsite.gateway.recovery.exportdir import ExportRecordDamaged, SocketAccess, read_run
from secondsite.gateway.recovery.exports import ExportFailed, Exports
from secondsite.gateway.target.pins import Pins
from support.control import Events
from support.machines import SHOP
from support.replicas import SIZES, Replica, make_replica


def make(replica: Replica, root: Path, events: Events) -> Exports:
    return Exports(
        directory=root / "exports",
        store_url=str(replica.store_path),
        key_file=replica.key_file,
        pins=Pins(replica.journal.store, replica.vault),
        access=SocketAccess(),
        clock=SystemClock(),
        events=events,
    )


def begin(exports: Exports, replica: Replica, root: Path) -> ExportStatus:
    return exports.begin(
        identity="one",
        machine=SHOP,
        machine_name="shop",
        point=replica.newest,
        disks=dict(SIZES),
        reason="a test",
        socket_path=root / "one.sock",
    )


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return make_replica(tmp_path)


def test_no_process_to_be_had_leaves_neither_spec_nor_pin(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = make(replica, tmp_path, Events())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(ExportFailed, match="No such file"):
        begin(exports, replica, tmp_path)
    assert (exports.all(), list((tmp_path / "exports").iterdir())) == ([], [])
    assert replica.journal.state().pins == ()


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_volume_leaves_neither_spec_nor_pin(
    writes: int, replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full before the spec is written, or after it."""
    exports = make(replica, tmp_path, Events())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    left, really = [writes], files.replace_file

    def full(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(path, data, mode=mode)

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(ExportFailed):
        begin(exports, replica, tmp_path)
    assert (exports.all(), list((tmp_path / "exports").iterdir())) == ([], [])
    assert replica.journal.state().pins == ()


def test_one_that_cannot_be_started_again_is_told_and_the_others_are(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = make(replica, tmp_path, Events())
    begin(exports, replica, tmp_path)
    exports._kill(exports._specs()[0])
    events = Events()
    anew = make(replica, tmp_path, events)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(tmp_path / "no-python"))
        anew.resume()
        assert [event.code for event in events.all] == ["export.lost"]
        anew.check(lambda identity: None)
    assert anew.resume() == ["one"]
    anew.end("one")


@pytest.mark.parametrize("content", [b"", b"{", b'{"id": 7}', b"[" * 20_000, b"\xff"])
def test_a_damaged_spec_is_told_and_costs_no_other_export(
    content: bytes, replica: Replica, tmp_path: Path
) -> None:
    events = Events()
    exports = make(replica, tmp_path, events)
    begin(exports, replica, tmp_path)
    other = tmp_path / "exports" / "other"
    other.mkdir()
    (other / "spec.json").write_bytes(content)
    assert [export.id for export in exports.all()] == ["one"]
    exports.check(lambda identity: None)
    assert make(replica, tmp_path, Events()).resume() == [], "the other goes on being served"
    for ask in (exports.get, exports.end):
        with pytest.raises(ExportRecordDamaged, match=r"other/spec\.json does not say what is exported"):
            ask("other")
    assert [event.code for event in events.all] == ["export.record-damaged"], "once"
    exports.end("one")


def test_a_process_whose_number_is_lost_is_shown_and_not_taken_for_ended(
    replica: Replica, tmp_path: Path
) -> None:
    events = Events()
    exports = make(replica, tmp_path, events)
    begin(exports, replica, tmp_path)
    run = tmp_path / "exports" / "one" / "run.json"
    kept = run.read_bytes()
    run.write_bytes(b"{")
    with pytest.raises(ExportRecordDamaged, match=r"run\.json"):
        read_run(run.parent)
    assert exports.all()[0].process is None
    with pytest.raises(ExportRecordDamaged):
        exports.end("one")
    assert replica.journal.state().pins, "a point that is still read stays"
    run.write_bytes(kept)
    exports.end("one")
    assert [event.code for event in events.all] == ["export.record-damaged"]
