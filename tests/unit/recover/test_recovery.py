"""Listing, exporting and testing replicas: the role itself over a real store, real export processes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.choose import NoSuchPoint
from secondsite.gateway.common.sockets import SocketPathTooLong
from secondsite.gateway.messages.gateway import ExportRequest, ExportStatus
from secondsite.gateway.messages.testfailover import CleanUp, TestFailoverState
from secondsite.gateway.recovery.exportdir import ExportRecordDamaged, ExportSpec
from secondsite.gateway.recovery.exports import ExportUnknown
from secondsite.gateway.recovery.testfailover import (
    NoTestFailover,
    PrerequisitesFailed,
    TestFailoverRecordDamaged,
    TestFailoverRunning,
)
from secondsite.journal.keys import VaultKey
from secondsite.model.ids import DiskId
from secondsite.model.machines import Mapping, Network
from secondsite.nbd.client import NbdClient
from support.machines import SHOP
from support.recovery_site import Site, make_site
from support.replicas import Replica


def read_disk(export: ExportStatus, disk: DiskId) -> bytes:
    served = next(item for item in export.disks if item.id == disk)
    client = NbdClient.connect_unix(served.socket_path, served.export_name)
    try:
        data = bytearray(client.size_bytes)
        for offset in range(0, len(data), 1024 * 1024):
            client.read_into(offset, memoryview(data)[offset : offset + 1024 * 1024])
        return bytes(data)
    finally:
        client.close()


# listing


def test_replicas_and_points_are_listed(site: Site) -> None:
    assert site.recovery.machines() == [(SHOP, "shop")]
    points = site.recovery.points(SHOP)
    assert [point.number for point in points] == sorted(site.replica.contents)
    assert points[1].consistency.value == "ApplicationConsistent"
    [kept] = site.recovery.replicas()
    assert (kept.name, kept.points, kept.epoch) == ("shop", 3, 1)
    assert kept.newest == points[-1]
    assert kept.rpo_seconds is not None


# exports


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_export_reads_exactly_what_the_point_holds(site: Site, tmp_path: Path, which: int) -> None:
    number = sorted(site.replica.contents)[which]
    request = ExportRequest(point=str(number), socket_dir=str(tmp_path / "look"))
    export = site.recovery.start_export(SHOP, request)
    assert site.pins() == [number]
    for disk, content in site.replica.contents[number].items():
        assert read_disk(export, disk) == content
    assert oct(Path(export.disks[0].socket_path).stat().st_mode & 0o777) == "0o600"
    assert [item.id for item in site.recovery.exports(SHOP)] == [export.id]
    site.recovery.end_export(SHOP, export.id)
    assert site.pins() == []
    assert site.recovery.exports(SHOP) == []
    assert not Path(export.disks[0].socket_path).exists()
    assert export.process is not None
    assert not Path(f"/proc/{export.process}").exists()
    with pytest.raises(ExportUnknown):
        site.recovery.end_export(SHOP, export.id)


def test_an_export_that_cannot_start_leaves_no_pin(site: Site, tmp_path: Path) -> None:
    other = VaultKey.create()
    site.replica.key_file.unlink()
    other.save(site.replica.key_file)
    with pytest.raises(SecondsiteError) as caught:
        site.recovery.start_export(SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look")))
    assert other.id in " ".join(caught.value.sentences())
    assert site.replica.vault.id in " ".join(caught.value.sentences())
    assert site.pins() == []
    assert site.exports.all() == []


def test_a_socket_with_too_long_a_name_is_refused_before_anything_is_done(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SocketPathTooLong):
        site.recovery.start_export(SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / ("x" * 90))))
    assert site.pins() == []


def test_a_killed_export_is_served_again_at_the_same_address(site: Site, tmp_path: Path) -> None:
    number = site.replica.newest
    export = site.recovery.start_export(
        SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
    )
    assert export.process is not None
    os.kill(export.process, signal.SIGKILL)
    site.wait(lambda: "export.restarted" in site.events.codes(), "a restart")
    again = site.exports.get(export.id)
    assert again.process not in (None, export.process)
    assert again.restarts == 1
    assert again.disks == export.disks
    for disk, content in site.replica.contents[number].items():
        assert read_disk(again, disk) == content


def test_the_watch_over_exports_outlives_an_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = site.recovery.start_export(SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path)))
    failures = iter(range(3))
    start_lost = site.exports._start_lost

    def out_of_descriptors() -> list[str]:
        if next(failures, None) is not None:
            raise OSError(24, "Too many open files")
        return start_lost()

    monkeypatch.setattr(site.exports, "_start_lost", out_of_descriptors)
    assert export.process is not None
    os.kill(export.process, signal.SIGKILL)
    site.wait(lambda: "export.restarted" in site.events.codes(), "a restart")
    assert site.events.codes().count("export.watch-failed") == 1, "told once"


def test_a_name_from_the_other_site_does_not_lead_out_of_the_sockets_directory(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [msgspec.structs.replace(p, machine_name="../../up") for p in site.replica.journal.points()]
    monkeypatch.setattr(site.recovery.journal(SHOP), "points", lambda: named)
    export = site.recovery.start_export(
        SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
    )
    assert Path(export.disks[0].socket_path).resolve().parent == tmp_path / "look"


def test_a_wedged_export_is_killed_and_served_again(replica: Replica, tmp_path: Path) -> None:
    site = make_site(tmp_path, replica, wedged_seconds=1.0)
    site.recovery.resume()
    try:
        request = ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
        export = site.recovery.start_export(SHOP, request)
        assert export.process is not None
        os.kill(export.process, signal.SIGSTOP)
        site.wait(lambda: "export.restarted" in site.events.codes(), "a restart")
        assert site.events.codes().index("export.wedged") < site.events.codes().index("export.restarted")
        again = site.exports.get(export.id)
        assert read_disk(again, DiskId("vda")) == replica.contents[replica.newest][DiskId("vda")]
    finally:
        site.recovery.close()
        for export in site.exports.all():
            site.exports.end(export.id)


def test_a_healthy_export_is_left_alone_however_often_it_is_probed(replica: Replica, tmp_path: Path) -> None:
    site = make_site(tmp_path, replica, wedged_seconds=0.2)
    request = ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
    export = site.recovery.start_export(SHOP, request)
    try:
        clock, never = SystemClock(), threading.Event()
        for _ in range(20):
            site.exports.check(lambda _identity: None)
            clock.wait(never, 0.05)
        assert site.events.codes() == []
        assert site.exports.get(export.id).process == export.process
    finally:
        site.exports.end(export.id)


def test_an_export_outlives_its_gateway_and_is_known_to_the_next(site: Site, tmp_path: Path) -> None:
    export = site.recovery.start_export(
        SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
    )
    site.recovery.close()
    next_site = make_site(tmp_path, site.replica)
    next_site.recovery.resume()
    try:
        [known] = next_site.recovery.exports(SHOP)
        assert known.process == export.process, "it was not started twice"
        next_site.recovery.end_export(SHOP, export.id)
        assert next_site.pins() == []
    finally:
        next_site.recovery.close()


def test_a_lost_pin_is_taken_again_before_the_export_is_served(site: Site, tmp_path: Path) -> None:
    export = site.recovery.start_export(
        SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look"))
    )
    site.replica.journal.unpin(export.holder)
    site.exports.resume()
    assert site.pins() == [site.replica.newest]


# test failovers


def test_a_test_failover_boots_the_point_and_is_shown_as_a_test(site: Site) -> None:
    status = site.start()
    assert status.state is TestFailoverState.COMPLETED, status.error
    assert (status.name, status.point, status.network) == ("shop-test", site.replica.newest, "isolated")
    assert [step.name for step in status.steps] == [
        "point exported",
        "isolated network made",
        "machine defined and started",
    ]
    times = [
        status.requested_at,
        *(at for step in status.steps for at in (step.started_at, step.ended_at or "")),
    ]
    assert times == sorted(times)
    assert status.booted_at is not None
    [recovered] = site.fabric.recovered()
    spec = site.fabric.recovered_spec(recovered)
    assert not spec.keep_identity
    assert "point" in spec.note
    [network] = [net for net in site.fabric.networks() if net.isolated]
    assert spec.network == network.name
    assert site.recovery.replicas()[0].test_failover == status
    [export] = site.recovery.exports(SHOP)
    for disk, content in site.replica.contents[status.point].items():
        assert read_disk(export, disk) == content


def test_clean_up_removes_all_of_it_and_keeps_the_notes(site: Site) -> None:
    site.start()
    cleaned = site.clean_up()
    assert cleaned.state is TestFailoverState.CLEANUP_COMPLETED
    assert (cleaned.notes, cleaned.cleaned_up_by) == ("fine", "tester")
    assert cleaned.cleaned_up_at is not None
    assert site.fabric.recovered() == []
    assert [net for net in site.fabric.networks() if net.isolated] == []
    assert site.recovery.exports(SHOP) == []
    assert site.pins() == []
    assert site.recovery.replicas()[0].test_failover is None
    with pytest.raises(NoTestFailover):
        site.clean_up()
    # several attempts, each with its record
    assert site.start(point="latest-application-consistent").point == sorted(site.replica.contents)[1]
    site.clean_up()
    assert [test.notes for test in site.recovery.test_failovers()] == ["fine", "fine"]


def test_replication_goes_on_while_a_test_stands(site: Site, tmp_path: Path) -> None:
    status = site.start()
    journal = site.replica.journal
    head = journal.head()
    journal.claim(name="shop", claimant="a", reason="resync", clock=FakeClock(), expected=head)
    [export] = site.recovery.exports(SHOP)
    for disk, content in site.replica.contents[status.point].items():
        assert read_disk(export, disk) == content


@pytest.mark.parametrize(
    ("network", "spec_network", "mapped"),
    [("none", None, {}), ("default", "default", {}), ("mapped", None, {"lan": "lan-b"})],
)
def test_network_choices(site: Site, network: str, spec_network: str | None, mapped: dict[str, str]) -> None:
    status = site.start(network=network)
    assert status.state is TestFailoverState.COMPLETED, status.error
    spec = site.fabric.recovered_spec(site.fabric.recovered()[0])
    assert spec.network == spec_network
    assert spec.mapping.networks == mapped
    assert [net for net in site.fabric.networks() if net.isolated] == []
    site.clean_up()
    assert [net.name for net in site.fabric.networks()] == ["default"], (
        "a network of the site is never removed"
    )


def test_the_sites_own_mapping_wins_over_the_one_of_the_point(tmp_path: Path, replica: Replica) -> None:
    site = make_site(tmp_path, replica, mapping=Mapping(networks={"lan": "own"}))
    site.recovery.resume()
    try:
        site.start(network="mapped")
        spec = site.fabric.recovered_spec(site.fabric.recovered()[0])
        assert spec.mapping.networks == {"lan": "own"}
        site.clean_up()
    finally:
        site.recovery.close()


def test_every_failed_prerequisite_is_listed_and_nothing_is_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fabric.add_machine("shop-test", {"vda": 1024 * 1024})
    with pytest.raises(PrerequisitesFailed) as caught:
        site.start(network="lan-x")
    told = str(caught.value)
    assert "a machine named shop-test exists at this site already (choose another --name)" in told
    assert "there is no network lan-x at this site (there are: default)" in told
    dead = Network(name="lan-x", active=False, isolated=False)
    monkeypatch.setattr(site.fabric, "networks", lambda: [dead])
    monkeypatch.setattr(site.fabric, "pools", list)
    with pytest.raises(PrerequisitesFailed) as caught:
        site.start(network="lan-x", name="other")
    assert "the network lan-x is not active; this site has no active storage pool" in str(caught.value)
    assert site.recovery.test_failovers() == []
    assert site.pins() == []


def test_a_point_that_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(NoSuchPoint):
        site.start(point="99")


def test_one_test_at_a_time(site: Site) -> None:
    site.start()
    with pytest.raises(TestFailoverRunning) as caught:
        site.start()
    assert "secondsite test-failover clean-up shop" in caught.value.sentences()[2]
    site.clean_up()


def test_a_boot_that_fails_says_why_and_leaves_nothing(site: Site) -> None:
    site.fabric.fail_recovery("it has no room")
    status = site.start()
    assert status.state is TestFailoverState.FAILED
    assert status.error is not None
    assert "it has no room" in status.error["happened"]
    assert site.fabric.recovered() == []
    assert [net for net in site.fabric.networks() if net.isolated] == []
    assert site.pins() == []
    site.wait(lambda: "test-failover.failed" in site.events.codes(), "the event")
    assert site.start().state is TestFailoverState.COMPLETED
    site.clean_up()


def test_a_defect_is_told_and_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_spec: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(site.fabric, "start_recovered", broken)
    status = site.start()
    assert status.state is TestFailoverState.FAILED
    assert status.error is not None
    assert "ZeroDivisionError: a defect" in status.error["happened"]
    assert site.pins() == []


def test_a_clean_up_that_fails_can_be_repeated(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start()

    def busy(_recovered: object) -> None:
        raise NoSuchPoint(machine="shop", wanted="a thing", known="the hypervisor is busy")

    with monkeypatch.context() as patch:
        patch.setattr(site.fabric, "remove_recovered", busy)
        status = site.clean_up()
    assert status.state is TestFailoverState.CLEANUP_FAILED
    assert status.error is not None
    assert site.pins() == [status.point], "what may still be read stays pinned"
    assert site.clean_up().state is TestFailoverState.CLEANUP_COMPLETED
    assert site.pins() == []


@pytest.mark.parametrize("stopped", [True, False])
def test_a_guest_stopped_by_a_lost_export_runs_again(site: Site, stopped: bool) -> None:
    site.start()
    [recovered] = site.fabric.recovered()
    [export] = site.recovery.exports(SHOP)
    assert export.process is not None
    if stopped:
        site.fabric.stop_recovered(recovered)
    os.kill(export.process, signal.SIGKILL)
    site.wait(lambda: "export.restarted" in site.events.codes(), "a restart")
    if stopped:
        site.wait(lambda: "test-failover.resumed" in site.events.codes(), "a resume")
        site.fabric.stop_recovered(recovered)  # the first request after it fails once more
        site.wait(lambda: recovered.id not in site.fabric._stopped, "a second resume")
    site.clean_up()
    assert site.events.codes().count("test-failover.resumed") == int(stopped)


def test_an_export_that_raises_holds_up_no_guest_of_another(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does, each time it is looked at, that lives, does not answer, and whose record is damaged."""
    other = site.recovery.start_export(SHOP, ExportRequest(point="latest", socket_dir=str(tmp_path / "look")))
    site.start()
    [recovered] = site.fabric.recovered()
    [export] = [one for one in site.recovery.exports(SHOP) if one.id != other.id]
    kill_wedged = site.exports._kill_wedged

    def kill(spec: ExportSpec) -> None:
        if spec.id == other.id:
            raise ExportRecordDamaged(path="run.json", why="not JSON")
        kill_wedged(spec)

    monkeypatch.setattr(site.exports, "_kill_wedged", kill)
    site.fabric.stop_recovered(recovered)
    assert export.process is not None
    os.kill(export.process, signal.SIGKILL)
    site.wait(lambda: "test-failover.resumed" in site.events.codes(), "a resume")
    site.wait(lambda: "export.watch-failed" in site.events.codes(), "what was in the way is told")


def test_a_damaged_record_is_told_and_its_machine_keeps_its_export(
    site: Site, tmp_path: Path, replica: Replica
) -> None:
    status = site.start()
    record = tmp_path / "state" / "test-failovers" / f"{status.id}.json"
    kept = record.read_bytes()
    record.write_bytes(kept[:-20])
    site.recovery.close()
    with pytest.raises(TestFailoverRecordDamaged, match="cannot be read"):
        site.recovery.test_failover(status.id)
    anew = make_site(tmp_path, replica)
    anew.recovery.resume()
    try:
        assert [event.code for event in anew.events.all] == ["test-failover.record-damaged"]
        assert anew.recovery.test_failovers() == []
        assert [export.id for export in anew.exports.all()] == [f"test-{status.id}"]
        record.write_bytes(kept)
        assert anew.clean_up().state is TestFailoverState.CLEANUP_COMPLETED
    finally:
        anew.recovery.close()


def test_what_a_damaged_record_made_is_removed_by_force(site: Site, tmp_path: Path, replica: Replica) -> None:
    status = site.start(name="büro test")
    record = tmp_path / "state" / "test-failovers" / f"{status.id}.json"
    torn = record.read_bytes()[:-20]
    record.write_bytes(torn)
    with pytest.raises(NoTestFailover):
        site.clean_up()
    asked = CleanUp(notes="its record was torn", cleaned_up_by="tester", force=True)
    begun = site.recovery.clean_up(SHOP, asked)
    assert (begun.id, begun.name, begun.point) == (status.id, "büro test", status.point)
    assert site.finish(begun).state is TestFailoverState.CLEANUP_COMPLETED
    assert (site.fabric.recovered(), site.exports.all(), site.pins()) == ([], [], [])
    assert [network.name for network in site.fabric.networks() if network.isolated] == []
    assert record.with_suffix(".damaged").read_bytes() == torn
    assert "test-failover.forced" in site.events.codes()
    with pytest.raises(NoTestFailover):  # there is none any more
        site.recovery.clean_up(SHOP, asked)
