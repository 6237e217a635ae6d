"""Rescue: the real command with nothing but a store and its key."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.gateway.target.bases import open_base_for_writing
from secondsite.gateway.target.qcow2 import Qcow2Base
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.names import log_name
from secondsite.journal.promote import promote
from secondsite.journal.state import BaseState
from secondsite.model.ids import DiskId
from support.bases import wait_gone
from support.control import Ran, command_environment, read_uri, run_command
from support.machines import SHOP
from support.replicas import Replica, make_replica


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return make_replica(tmp_path)


def rescue(replica: Replica, *arguments: str | Path, key: Path | None = None) -> Ran:
    return run_command(
        "rescue", "--store", replica.store_path, "--key-file", key or replica.key_file, *arguments
    )


@contextmanager
def exported(replica: Replica, *arguments: str | Path) -> Iterator[list[str]]:
    """The addresses a running ``rescue export`` printed; it must end well when asked to."""
    options = ["--store", str(replica.store_path), "--key-file", str(replica.key_file)]
    with subprocess.Popen(
        [sys.executable, "-m", "secondsite", "rescue", *options, "export", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = [process.stdout.readline().strip() for _ in range(2)]
            assert all(lines), process.stderr.read()
            yield lines
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()


def test_who_holds_a_point_is_listed_without_any_gateway(replica: Replica) -> None:
    replica.journal.pin(3, "hold:audit", "the auditors want it", "2999-01-01T00:00:00.000000+00:00")
    shown = rescue(replica, "list", "shop").out
    assert "audit until 2999-01-01 00:00:00Z: the auditors want it" in shown
    listed = rescue(replica, "list", "shop", "--json").json
    assert [point["number"] for point in listed if point["heldBy"]] == [3]


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_machines_and_points_are_listed_and_the_store_is_not_touched(replica: Replica) -> None:
    before = files_of(replica.store_path)
    shown = rescue(replica, "list")
    assert shown.code == 0, shown.err
    assert "shop" in shown.out
    assert SHOP in shown.out
    [machine] = rescue(replica, "list", "--json").json
    assert (machine["name"], machine["points"], machine["error"]) == ("shop", 3, None)
    points = rescue(replica, "list", "shop", "--json").json
    assert [point["number"] for point in points] == sorted(replica.contents)
    assert files_of(replica.store_path) == before


def test_a_file_url_is_as_good_as_a_path(replica: Replica) -> None:
    ran = run_command(
        "rescue", "list", "--store", f"file://{replica.store_path}", "--key-file", replica.key_file, "--json"
    )
    assert ran.json[0]["name"] == "shop"


@pytest.mark.parametrize("which", [0, 2])
def test_a_point_is_exported_byte_for_byte_and_pinned_meanwhile(
    replica: Replica, tmp_path: Path, which: int
) -> None:
    number = sorted(replica.contents)[which]
    with exported(replica, "shop", str(number), "--socket-dir", tmp_path / "look") as uris:
        for uri, content in zip(uris, replica.contents[number].values(), strict=True):
            assert read_uri(uri) == content
        assert [pin.number for pin in replica.journal.state().pins] == [number]
    assert replica.journal.state().pins == ()
    assert list((tmp_path / "look").iterdir()) == []


def test_a_time_of_day_chooses_the_point_before_it(replica: Replica, tmp_path: Path) -> None:
    with exported(replica, "shop", "2026-05-04T12:00:09Z", "--socket-dir", tmp_path / "look") as uris:
        assert read_uri(uris[0]) == next(iter(replica.contents[3].values()))


def test_the_wrong_key_is_told_with_both_ids(replica: Replica, tmp_path: Path) -> None:
    other = VaultKey.create()
    other.save(tmp_path / "other.key")
    ran = rescue(replica, "export", "shop", "--socket-dir", tmp_path / "look", key=tmp_path / "other.key")
    assert ran.code != 0
    assert replica.vault.id in ran.err
    assert other.id in ran.err
    assert "Traceback" not in ran.err
    assert replica.journal.state().pins == (), "a failed export leaves no pin"


def test_a_lost_key_file_is_told(replica: Replica, tmp_path: Path) -> None:
    ran = rescue(replica, "list", key=tmp_path / "lost.key")
    assert ran.code == 3
    assert f"The key file {tmp_path}/lost.key cannot be read: No such file or directory." in ran.err
    assert "without the key no replica can be opened" in ran.err


def test_a_lost_wrapped_key_is_told(replica: Replica, tmp_path: Path) -> None:
    shutil.rmtree(replica.store_path / "machines" / SHOP / "keys")
    ran = rescue(replica, "export", "shop", "--socket-dir", tmp_path / "look")
    assert ran.code != 0
    assert "Traceback" not in ran.err
    assert "key" in ran.err


def test_a_store_that_is_not_there_or_empty_is_told(replica: Replica, tmp_path: Path) -> None:
    options: list[str | Path] = ["--key-file", replica.key_file, "list"]
    missing = run_command("rescue", "--store", tmp_path / "none", *options)
    assert missing.code != 0
    assert str(tmp_path / "none") in missing.err
    assert not (tmp_path / "none").exists(), "a typing error makes no directory"
    (tmp_path / "empty").mkdir()
    empty = run_command("rescue", "--store", tmp_path / "empty", *options)
    assert empty.code != 0
    assert "Traceback" not in empty.err + missing.err


def test_a_damaged_record_is_told_and_harms_no_other_machine(replica: Replica) -> None:
    number = sorted(replica.contents)[1]
    path = replica.store_path / log_name(SHOP, number)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    ran = rescue(replica, "list")
    assert ran.code == 6
    assert SHOP in ran.out
    assert "error: " in ran.err
    assert "action: " in ran.err
    assert "Traceback" not in ran.err


def test_a_damaged_segment_is_found_by_verify_and_stops_the_export(replica: Replica, tmp_path: Path) -> None:
    newest = replica.journal.point(replica.newest)
    victim = replica.store_path / replica.journal.segment_name(newest.segments[0])
    sound = run_command("segment", "verify", victim, "--key-file", replica.key_file)
    assert sound.code == 0, sound.err
    assert sound.out == f"{victim}: sound\n"
    data = bytearray(victim.read_bytes())
    data[400] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(data)
    with_key: list[str | Path] = ["--key-file", replica.key_file]
    for options in ([], with_key):
        damaged = run_command("segment", "verify", victim, *options)
        assert damaged.code == 6
        assert "Traceback" not in damaged.err
    listed = run_command("segment", "verify", victim, "--json").json
    assert listed[0]["sound"] is False
    assert listed[0]["error"]["outcome"] == "damaged"


def test_segment_dump_with_and_without_the_key(replica: Replica) -> None:
    ref = replica.journal.point(replica.newest).segments[0]
    path = replica.store_path / replica.journal.segment_name(ref)
    sealed = run_command("segment", "dump", path)
    assert sealed.code == 0, sealed.err
    assert f"machine: {SHOP}" in sealed.out
    assert "the index is sealed" in sealed.out
    opened = run_command("segment", "dump", path, "--key-file", replica.key_file, "--json").json
    assert opened["id"] == ref.id
    assert sum(block["length"] for block in opened["blocks"]) == ref.data_bytes
    table = run_command("segment", "dump", path, "--key-file", replica.key_file).out
    assert "OFFSET" in table


def test_a_segment_out_of_its_store_asks_for_its_wrapped_key(replica: Replica, tmp_path: Path) -> None:
    ref = replica.journal.point(replica.newest).segments[0]
    copy = tmp_path / "a" / "b" / "c" / "d" / "segment"
    copy.parent.mkdir(parents=True)
    shutil.copy(replica.store_path / replica.journal.segment_name(ref), copy)
    ran = run_command("segment", "dump", copy, "--key-file", replica.key_file)
    assert ran.code == 3
    assert "--wrapped-key FILE" in ran.err
    key = replica.store_path / "machines" / SHOP / "keys" / replica.keys[ref.disk].id
    ran = run_command("segment", "dump", copy, "--key-file", replica.key_file, "--wrapped-key", key)
    assert ran.code == 0, ran.err


def test_a_moved_base_is_asked_for_only_where_there_is_one(replica: Replica, tmp_path: Path) -> None:
    look = tmp_path / "look"
    ran = rescue(replica, "export", "shop", "--socket-dir", look, "--base", f"vda={tmp_path}/x.raw")
    assert ran.code == 2
    assert "disk vda of the machine has no base" in ran.err


def test_take_over_claims_the_epoch_before_anything_boots(replica: Replica) -> None:
    """Through the role: the command itself needs a hypervisor, tests/e2e has it."""
    from secondsite.gateway.recovery.rescue import Rescue

    opened = Rescue(str(replica.store_path), replica.key_file)
    claim = opened.take_over(SHOP, claimant="rescue by tester", clock=FakeClock())
    assert (claim.epoch, claim.reason) == (2, "failover")
    head = replica.journal.head()
    assert (head.epoch, head.claim) == (2, claim)
    assert [point.number for point in replica.journal.points()] == sorted(replica.contents)


def test_what_a_gateway_took_over_is_not_taken_from_it_unasked(replica: Replica) -> None:
    from secondsite.gateway.recovery.rescue import Rescue, TakenOverBefore

    head, clock = replica.journal.head(), FakeClock()
    replica.journal.claim(name="shop", claimant="gateway-b", reason="failover", clock=clock, expected=head)
    opened = Rescue(str(replica.store_path), replica.key_file)
    with pytest.raises(TakenOverBefore, match="gateway-b took it over in epoch 2"):
        opened.take_over(SHOP, claimant="rescue by ann", clock=clock)
    with pytest.raises(TakenOverBefore):
        opened.take_over(SHOP, claimant="rescue by ann", clock=clock, over="gateway-c")
    assert replica.journal.head().epoch == 2
    assert opened.take_over(SHOP, claimant="rescue by ann", clock=clock, over="gateway-b").epoch == 3
    assert opened.take_over(SHOP, claimant="rescue by ann", clock=clock).epoch == 4, "it is ours by now"


@pytest.fixture(params=["raw", "qcow2"])
def base_format(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield request.param
    wait_gone(tmp_path)


@pytest.fixture
def promoted(replica: Replica, base_format: str) -> Replica:
    """The second point and all before it are in bases, in a pool; the third is in the journal above them."""
    pool = replica.root / "pool"
    pool.mkdir()

    def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        assert known is None or known.format == base_format
        if known is not None:
            return open_base_for_writing(known)
        kind = Qcow2Base if base_format == "qcow2" else RawBase
        return kind.create(pool / f"shop-{disk}.{base_format}", size_bytes)

    journal = replica.journal
    keys = KeyRing(journal.store, SHOP, replica.vault)
    promote(journal, sorted(replica.contents)[1], keys, open_base, clock=FakeClock())
    return replica


def test_bases_are_found_where_the_store_says(promoted: Replica, tmp_path: Path) -> None:
    listed = rescue(promoted, "list", "shop", "--json").json
    assert [point["number"] for point in listed] == sorted(promoted.contents)[1:]
    for number in sorted(promoted.contents)[1:]:
        with exported(promoted, "shop", str(number), "--socket-dir", tmp_path / "look") as uris:
            for uri, content in zip(uris, promoted.contents[number].values(), strict=True):
                assert read_uri(uri) == content


def test_a_moved_base_is_asked_for_checked_and_used(
    promoted: Replica, base_format: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(promoted.root / "pool", elsewhere)
    look = tmp_path / "look"
    ran = rescue(promoted, "export", "shop", "--socket-dir", look)
    assert ran.code == 3
    assert f"The base of disk vda is not at {promoted.root}/pool/shop-vda.{base_format}." in ran.err
    assert "--base vda=PATH" in ran.err
    moved = [
        f"--base=vda={elsewhere}/shop-vda.{base_format}",
        f"--base=vdb={elsewhere}/shop-vdb.{base_format}",
    ]
    with exported(promoted, "shop", "--socket-dir", look, *moved) as uris:
        for uri, content in zip(uris, promoted.contents[promoted.newest].values(), strict=True):
            assert read_uri(uri) == content
    swapped = [
        f"--base=vda={elsewhere}/shop-vdb.{base_format}",
        f"--base=vdb={elsewhere}/shop-vda.{base_format}",
    ]
    ran = rescue(promoted, "export", "shop", "--socket-dir", look, *swapped)
    assert ran.code == 4
    assert "has another identity than the store knows" in ran.err
    assert promoted.journal.state().pins == ()


def test_another_file_at_the_bases_place_is_refused(
    promoted: Replica, base_format: str, tmp_path: Path
) -> None:
    path = promoted.root / "pool" / f"shop-vda.{base_format}"
    path.unlink()
    kind = Qcow2Base if base_format == "qcow2" else RawBase
    kind.create(path, len(promoted.contents[promoted.newest][DiskId("vda")])).close()
    ran = rescue(promoted, "export", "shop", "--socket-dir", tmp_path / "look")
    assert ran.code == 4
    assert "base.mismatch" in ran.err
