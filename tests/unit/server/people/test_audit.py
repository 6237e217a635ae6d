"""The audit log: written with the change or not at all, and no row edited, removed or added unnoticed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secondsite.cli.main import main
from secondsite.model.auditlog import FIRST_DIGEST, SEAL_PURPOSE, ExportDamaged, check_export
from secondsite.server.database.engine import Database
from secondsite.server.identity.envelopes import FILE_HEAD, MasterKey
from secondsite.server.people.audit import Audit, AuditDamaged
from secondsite.server.people.roles import Actor, Grant, Role
from secondsite.server.people.users import UserUnknown
from support.server import AUDIT_KEY, RunningApi, make_services, owner, running_api

MARIA = Actor("maria", "token:1", "192.0.2.1", "r1")


@pytest.fixture
def audit(database: Database) -> Audit:
    return Audit(database, AUDIT_KEY)


def _fill(audit: Audit, rows: int) -> None:
    for number in range(rows):
        audit.record(MARIA, "item.change", f"m{number}", outcome="succeeded", detail={"number": number})


def _do(database: Database, statement: str) -> None:
    with database.write() as connection:
        assert connection.exec_driver_sql(statement).rowcount


def test_an_untouched_log_holds(audit: Audit) -> None:
    assert audit.verify().entries == 0
    _fill(audit, 5)
    found = audit.verify()
    assert found.entries == 5
    assert audit.verify((5, found.digest)) == found


EDITS = {
    "a row edited": ("UPDATE audit SET actor = 'nobody' WHERE number = 3", 3),
    "a detail edited": ("UPDATE audit SET detail = '{\"number\":9}' WHERE number = 3", 3),
    "a detail spoilt": ("UPDATE audit SET detail = 'x' WHERE number = 3", 3),
    "a row removed": ("DELETE FROM audit WHERE number = 3", 3),
    "the end cut off": ("DELETE FROM audit WHERE number = 5", 5),
    "all removed": ("DELETE FROM audit", 1),
    "the head set back": ("UPDATE audit_head SET number = 4", 4),
    "the head's digest changed": ("UPDATE audit_head SET digest = '0'", 5),
    "a seal changed": ("UPDATE audit SET seal = '0' WHERE number = 2", 2),
    "two rows exchanged": (
        "UPDATE audit SET target = CASE target WHEN 'm1' THEN 'm2' ELSE 'm1' END WHERE number IN (2, 3)",
        2,
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_found_where_it_was_made(audit: Audit, database: Database, edit: str) -> None:
    _fill(audit, 5)
    statement, number = EDITS[edit]
    _do(database, statement)
    with pytest.raises(AuditDamaged, match=f"at number {number}:"):
        audit.verify()


def test_who_makes_all_digests_anew_lacks_the_key(audit: Audit, database: Database) -> None:
    _fill(audit, 5)
    _do(database, "UPDATE audit SET actor = 'nobody' WHERE number = 3")
    before = ""
    for entry in audit.entries():
        digest = entry.hashed(before or FIRST_DIGEST)
        _do(database, f"UPDATE audit SET digest = '{digest}' WHERE number = {entry.number}")
        before = digest
    _do(database, f"UPDATE audit_head SET digest = '{before}'")
    with pytest.raises(AuditDamaged, match="at number 3:"):
        audit.verify()


def test_an_older_state_put_back_whole_is_told_by_an_anchor(audit: Audit, database: Database) -> None:
    _fill(audit, 3)
    old = audit.page(after=2, limit=1)[0]
    _fill(audit, 2)
    known = audit.verify()
    _do(database, "DELETE FROM audit WHERE number > 3")
    _do(database, f"UPDATE audit_head SET number = 3, digest = '{old.digest}', seal = '{old.seal}'")
    assert audit.verify().entries == 3  # it holds in itself
    with pytest.raises(AuditDamaged, match="is gone"):
        audit.verify((known.entries, known.digest))
    _fill(audit, 2)
    with pytest.raises(AuditDamaged, match="not the row"):
        audit.verify((known.entries, "f" * 64))


def test_a_change_that_fails_leaves_no_row(database: Database, tmp_path: Path) -> None:
    services = make_services(database, tmp_path)
    owner(services)
    rows = services.audit.verify().entries
    with pytest.raises(UserUnknown):
        services.users.grant(MARIA, "nobody", Grant("*", Role.READER))
    assert services.audit.verify().entries == rows


def test_many_writers_make_one_chain(audit: Audit, database: Database) -> None:
    def work() -> None:
        for _ in range(10):
            # not alone: as the job engine writes
            with database.write(alone=False) as connection:
                audit.append(connection, MARIA, "job.change", "j")

    _fill(audit, 1)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify().entries == 41


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(1, 6), column=st.sampled_from(["at", "via", "address", "request", "vault", "outcome"]))
def test_no_column_can_be_changed(database: Database, row: int, column: str) -> None:
    audit = Audit(database, AUDIT_KEY)
    if audit.verify().entries == 0:
        _fill(audit, 6)
    before = database.engine
    with before.connect() as connection:
        held = connection.execute(sa.text(f"SELECT {column} FROM audit WHERE number = {row}")).scalar_one()
    _do(database, f"UPDATE audit SET {column} = {column} || 'x' WHERE number = {row}")
    with pytest.raises(AuditDamaged, match=f"at number {row}:"):
        audit.verify()
    with database.write() as writer:
        writer.execute(sa.text(f"UPDATE audit SET {column} = :held WHERE number = {row}"), {"held": held})
    assert audit.verify().entries == 6


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    with running_api(make_services(database, tmp_path)) as running:
        yield running


def test_over_the_api_who_from_where_and_which_request(api: RunningApi) -> None:
    token = owner(api.services)
    call = api.call.as_(token)
    call("POST", "/api/v1/users", {"name": "maria", "displayName": "Märiä"}, {"x-request-id": "deploy-17"})
    row = call("GET", "/api/v1/audit?operation=user.create&actor=olga").json()["value"][-1]
    assert row["actor"] == "olga"
    assert row["via"] == f"api:{token[4:20]}"
    assert row["request"] == "deploy-17"
    assert row["target"] == "maria"
    assert row["outcome"] == "succeeded"
    assert row["detail"] == {"displayName": "Märiä"}


def test_an_export_is_checked_by_anybody(api: RunningApi) -> None:
    call = api.call.as_(owner(api.services))
    call("POST", "/api/v1/users", {"name": "maria", "displayName": "Märiä"})
    exported = call("GET", "/api/v1/audit/export")
    assert exported.headers["content-type"] == "application/x-ndjson"
    digest = "0" * 64
    lines = exported.data.splitlines()
    # as docs/server.md describes it, without any code of ours
    names = (
        "number",
        "at",
        "actor",
        "via",
        "address",
        "request",
        "operation",
        "vault",
        "target",
        "outcome",
        "detail",
    )
    for line in lines:
        row = json.loads(line)
        fields = json.dumps(
            [digest, *(row[name] for name in names)],
            ensure_ascii=False,
            separators=(",", ":"),
            sort_keys=True,
        )
        digest = hashlib.sha256(fields.encode()).hexdigest()
        assert row["digest"] == digest
    verified = call("GET", "/api/v1/audit/verification").json()
    assert verified == {"entries": len(lines), "digest": digest}
    assert call("GET", f"/api/v1/audit/verification?anchor={len(lines)}:{digest}").status == 200
    damaged = call("GET", f"/api/v1/audit/verification?anchor={len(lines)}:{'0' * 64}")
    assert damaged.status == 409
    assert damaged.code == "audit.damaged"


def test_a_log_in_that_fails_is_in_the_log(api: RunningApi) -> None:
    api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": "guess"})
    row = api.services.audit.page(after=0, limit=10)[-1]
    assert (row.actor, row.operation, row.outcome) == ("maria", "session.create", "refused")


def _exported(audit: Audit) -> list[bytes]:
    return [msgspec.json.encode(entry) + b"\n" for entry in audit.entries()]


def test_an_export_is_checked_without_a_server(
    audit: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every way to change it, by the command that people use."""
    for number in range(12):
        audit.record(Actor("olga", "token:1", "192.0.2.1", f"r{number}"), "user.create", f"ü{number}")
    lines = _exported(audit)
    last = audit.verify()
    anchor = f"{last.entries}:{last.digest}"
    master = tmp_path / "master.key"
    master.write_text(f"{FILE_HEAD}\n{'00' * 32}\n")
    master.chmod(0o600)
    file = tmp_path / "audit.jsonl"

    def verify(found: list[bytes], *words: str) -> int:
        file.write_bytes(b"".join(found))
        return main(["audit", "verify", str(file), *words])

    assert verify(lines) == verify(lines, "--anchor", anchor) == 0
    assert anchor in capsys.readouterr().out
    edited = lines[4].replace(b"olga", b"otto")
    forged = [*lines[:4], edited, *lines[5:]]
    for found, at in (
        (forged, 5),
        ([*lines[:3], *lines[4:]], 4),
        ([*lines[:3], lines[2], *lines[3:]], 4),
        ([lines[1], lines[0], *lines[2:]], 1),
        (lines[1:], 1),
        ([*lines[:-1], lines[-1][:-9]], len(lines)),
        ([*lines[:2], b"x" * 300_000 + b"\n"], 3),
        ([*lines[:2], b"[" * 100_000 + b"\n"], 3),
        ([*lines[:2], b"\n", *lines[2:]], 3),
    ):
        assert verify(found) == 6
        assert f"row {at}:" in capsys.readouterr().err
    # cut off at the end, or made anew from a row on: that needs what is known from elsewhere
    assert verify(lines[:-2]) == 0
    assert verify(lines[:-2], "--anchor", anchor) == 6
    anew, before = [], FIRST_DIGEST
    for entry in audit.entries():
        other = msgspec.structs.replace(entry, actor="otto")
        before = other.hashed(before)
        anew.append(msgspec.json.encode(msgspec.structs.replace(other, digest=before)) + b"\n")
    assert verify(anew) == 0
    assert verify(anew, "--anchor", anchor) == 6
    assert verify(anew, "--master-key", str(master)) == 6
    assert "seal" in capsys.readouterr().err
    assert verify(lines, "--anchor", "12") == 2
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2


def test_seals_of_an_export_are_checked_with_the_master_key(database: Database) -> None:
    key = MasterKey(bytes(32)).derive(SEAL_PURPOSE)
    audit = Audit(database, key)
    audit.record(Actor("olga", "token:1"), "user.create", "maria")
    lines = _exported(audit)
    assert check_export(lines, key=key).sealed
    with pytest.raises(ExportDamaged, match="seal"):
        check_export(lines, key=bytes(32))
