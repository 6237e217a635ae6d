"""Backups that were changed, restores that are killed: read whole or refused, kept whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.base.errors import SecondsiteError
from secondsite.server.database.engine import open_database
from secondsite.server.identity.envelopes import FILE_HEAD, MasterKey
from secondsite.server.survival import container, restore
from secondsite.server.survival.container import END, END_MAGIC, HEADER, BackupReader, BackupWriter, new_head
from secondsite.server.survival.dump import CONTENTS_VERSION, dump
from secondsite.server.survival.errors import BackupDamaged, BackupForeign, BackupTooNew
from support.databases import Databases
from support.filled import fill

pytestmark = pytest.mark.fault
MASTER = MasterKey(bytes(range(32)))
CLOCK = SystemClock()
RESTORE_MARKS = (
    restore.RESTORE_BEGUN,
    restore.RESTORE_LOADED,
    restore.RESTORE_SETTLED,
    restore.RESTORE_KEPT,
)
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "server-backup-1.ssbk"


def _backup(lines: list[bytes]) -> bytes:
    file = io.BytesIO()
    writer = BackupWriter(file, new_head(MASTER, made_at=1, incarnation=2, server="ab" * 16), MASTER)
    for line in lines:
        writer.line(line)
    size, digest = writer.close()
    data = file.getvalue()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    return data


def _read(data: bytes) -> list[bytes]:
    return list(BackupReader(io.BytesIO(data), MASTER, "it").lines())


def _with_end(body: bytes, frames: int) -> bytes:
    """An end mark that fits: what is behind it must not count on it."""
    return body + END.pack(END_MAGIC, frames, len(body), hashlib.sha256(body).digest())


def test_changed_bytes_are_refused_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "FRAME_PLAIN_BYTES", 4096)
    lines = [bytes([65 + n % 26]) * (n * 37 % 900) for n in range(60)]
    whole = _backup(lines)
    assert _read(whole) == lines
    frames = END.unpack(whole[-END.size :])[1]
    assert frames > 3
    chance = random.Random(20261121)
    for _ in range(400):
        body = bytearray(whole[: -END.size])
        match chance.randrange(4):
            case 0:
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            case 1:
                del body[chance.randrange(len(body)) :]
            case 2:
                at = chance.randrange(len(body))
                body[at:at] = chance.randbytes(chance.randrange(1, 50))
            case 3:
                a, b = sorted(chance.randrange(HEADER.size, len(body)) for _ in range(2))
                body[a:b] = body[b : b + (b - a)]
        if bytes(body) == whole[: -END.size]:
            continue
        for data in (bytes(body) + whole[-END.size :], _with_end(bytes(body), frames)):
            with pytest.raises((BackupDamaged, BackupForeign, BackupTooNew)):
                _read(data)


def test_a_frame_cannot_blow_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "FRAME_PLAIN_BYTES", 8 << 20)
    data = _backup([b"x" * (6 << 20)])  # by a writer that keeps to nothing: some kilobytes of zlib
    monkeypatch.undo()
    with pytest.raises(BackupDamaged):
        _read(data)


_GOOD = {
    "version": CONTENTS_VERSION,
    "program": "0",
    "revision": "0005",
    "madeAt": "2026-01-01T00:00:00.000000Z",
}
_VAULTS = {"name": "vaults", "columns": ["id"], "rows": 1}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([b"[]"], BackupDamaged),
        ([b""], BackupDamaged),
        ([_GOOD | {"version": 2, "tables": []}], BackupTooNew),
        ([_GOOD | {"revision": "9999", "tables": []}], BackupTooNew),
        ([_GOOD | {"revision": "0000", "tables": []}, {"end": 0}], SecondsiteError),
        ([_GOOD | {"tables": [_VAULTS, _VAULTS]}], BackupDamaged),
        ([_GOOD | {"tables": [_VAULTS | {"name": "sqlite_master"}]}, ["x"], {"end": 1}], BackupDamaged),
        (
            [_GOOD | {"tables": [_VAULTS | {"columns": ["id", "strange"]}]}, ["x", 1], {"end": 1}],
            BackupDamaged,
        ),
        ([_GOOD | {"tables": [_VAULTS]}, ["x"], {"end": 1}], BackupDamaged),  # columns that may not be null
        ([_GOOD | {"tables": [_VAULTS]}, ["x", "y"], {"end": 1}], BackupDamaged),
        ([_GOOD | {"tables": [_VAULTS]}, [{"b64": "!"}], {"end": 1}], BackupDamaged),
        ([_GOOD | {"tables": [_VAULTS]}, [{"other": "x"}], {"end": 1}], BackupDamaged),
        ([_GOOD | {"tables": []}, {"end": 1}], BackupDamaged),
        ([_GOOD | {"tables": []}, {"end": 0}, [1]], BackupDamaged),
        ([_GOOD | {"tables": []}], BackupDamaged),
    ],
)
def test_lines_that_cannot_be_right_change_nothing(
    lines: list[object], error: type[SecondsiteError], tmp_path: Path
) -> None:
    data = _backup([line if isinstance(line, bytes) else msgspec.json.encode(line) for line in lines])
    database = open_database(f"sqlite:///{tmp_path / 'db'}", CLOCK)
    try:
        with pytest.raises(error):
            restore.restore(database, MASTER, io.BytesIO(data), "it")
        with database.engine.connect() as connection:
            assert not sa.inspect(connection).get_table_names()
    finally:
        database.close()


def test_the_golden_backup_is_read_by_every_version(tmp_path: Path) -> None:
    """Made by the first program that wrote backups: vaults, an authority, a job that was under way."""
    database = open_database(f"sqlite:///{tmp_path / 'db'}", CLOCK)
    try:
        found = restore.restore_from(database, MASTER, GOLDEN)
        assert found.head.incarnation == 1_700_000_000
        assert found.aftermath.incarnation > found.head.incarnation
        with database.engine.connect() as connection:
            names = connection.exec_driver_sql("SELECT friendly_name FROM vaults ORDER BY id").scalars().all()
            assert names == ["North", "\u5317"]
            assert connection.exec_driver_sql("SELECT state FROM jobs").scalars().all() == ["Failed"]
    finally:
        database.close()


@pytest.mark.parametrize(
    ("kind", "at"), [*[("sqlite", at) for at in RESTORE_MARKS], ("postgresql", RESTORE_MARKS[2])]
)
def test_a_killed_restore_leaves_nothing_or_all(
    kind: str, at: str, databases: Databases, tmp_path: Path
) -> None:
    assert {name for name in MARKS if name.startswith("restore.")} == set(RESTORE_MARKS)
    backup, key = tmp_path / "it.ssbk", tmp_path / "master.key"
    key.write_text(f"{FILE_HEAD}\n{MASTER.secret.hex()}\n")
    key.chmod(0o600)
    with databases.ready("sqlite") as url:
        source = open_database(url, CLOCK)
        fill(source)
        with backup.open("wb") as file:
            dump(source, MASTER, file)
        source.close()
    with databases.empty(kind) as url:
        words = [sys.executable, "-m", "support.restore_process", url, str(backup), str(key)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SECONDSITE_CRASH_AT": at}
        killed = subprocess.run(words, env=environment, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = subprocess.run(
            words, env=environment | {"SECONDSITE_CRASH_AT": ""}, capture_output=True, check=False, text=True
        )
        if at == restore.RESTORE_KEPT:  # it was done: a second one refuses
            assert "DatabaseNotEmpty" in again.stderr
        else:
            assert again.returncode == 0, again.stderr
        restored = open_database(url, CLOCK)
        with restored.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM vaults").scalar_one() == 7
        restored.close()
