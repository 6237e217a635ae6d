"""The sites and the guest do what every end-to-end test relies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.lab import processes
from secondsite.lab.errors import LabCommandFailed
from secondsite.lab.machine import read_checks
from secondsite.lab.sites import Sites
from support.lab import RunningGuest
from support.nbd_peers import qemu_nbd
from support.pair import nbd_sha256, source_hashes

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]


def test_acknowledged_records_survive_a_power_cut_and_later_ones_do_not_appear(guest: RunningGuest) -> None:
    root = guest.site.root
    processes.wait_until(lambda: guest.witness.acknowledged > 60, what="records", root=root, seconds=60)
    cut_at = SystemClock().utc().isoformat()
    guest.guest.destroy()
    gone_at = SystemClock().utc().isoformat()
    expected = guest.witness.expectation(cut_at, gone_at)
    guest.restart()
    check = read_checks(guest.guest.console_log)[-1]
    assert check.good
    assert expected.last_at_least > 50
    assert not expected.unmet(last=check.last, token=check.token)
    # and it goes on where it was
    before = guest.witness.acknowledged
    processes.wait_until(lambda: guest.witness.acknowledged > before + 20, what="more", root=root, seconds=60)
    guest.guest.pause()
    guest.guest.destroy()
    guest.restart()
    assert read_checks(guest.guest.console_log)[-1].good


def test_the_oracle_of_the_end_to_end_tests_reads_what_is_on_the_disks(
    guest: RunningGuest, tmp_path: Path
) -> None:
    root = guest.site.root
    processes.wait_until(lambda: guest.witness.acknowledged > 30, what="records", root=root, seconds=60)
    guest.guest.pause()
    hashes = source_hashes(guest.site, guest.guest.name)
    assert source_hashes(guest.site, guest.guest.name) == hashes
    guest.guest.destroy()
    for disk, path in guest.guest.disk_paths.items():
        socket_path = tmp_path / f"{disk}.sock"
        with qemu_nbd(path, socket_path, image_format="qcow2"):
            assert nbd_sha256(f"nbd+unix:///?socket={socket_path}") == hashes[disk]


def test_the_agent_freezes_both_file_systems(guest: RunningGuest) -> None:
    assert guest.guest.agent("guest-fsfreeze-freeze") == 2
    try:
        assert guest.guest.agent("guest-fsfreeze-status") == "frozen"
    finally:
        assert guest.guest.agent("guest-fsfreeze-thaw") == 2
    assert guest.guest.execute("/bin/hostname") == (0, "guest\n")


def test_the_checker_finds_a_damaged_record(guest: RunningGuest) -> None:
    root = guest.site.root
    processes.wait_until(lambda: guest.witness.acknowledged > 20, what="records", root=root, seconds=60)
    guest.witness.close()
    slots = guest.guest.spec.record_slots
    seek = guest.guest.spec.data_bytes // 4096 - slots + 7
    guest.guest.execute(
        "/bin/sh", "-c", f"echo damage | dd of=/dev/vdb bs=4096 seek={seek} conv=notrunc; sync"
    )
    guest.guest.destroy()
    guest.guest.start()
    guest.guest.wait_ready()
    check = read_checks(guest.guest.console_log)[-1]
    assert not check.good
    assert check.bad == 1
    assert check.gaps == 1


def test_a_cut_link_is_cut_and_heals(sites: Sites) -> None:
    ping = ["busybox", "ping", "-c", "1", "-W", "1", sites.b.address]
    assert "1 packets received" in sites.a.run(*ping)
    sites.link(sites.b, up=False)
    try:
        with pytest.raises(LabCommandFailed, match="100% packet loss"):
            sites.a.run(*ping)
    finally:
        sites.link(sites.b, up=True)
    assert "1 packets received" in sites.a.run(*ping)


def test_a_limited_line_is_slow_and_becomes_fast_again(sites: Sites) -> None:
    assert "tbf" not in sites.a.run("tc", "qdisc", "show", "dev", "wan0")
    sites.limit(8000)
    sites.limit(16000)  # a second limit replaces the first
    assert "rate 16Mbit" in sites.a.run("tc", "qdisc", "show", "dev", "wan0")
    sites.limit(None)
    assert "tbf" not in sites.a.run("tc", "qdisc", "show", "dev", "wan0")


def test_the_scratch_file_system_is_seen_inside_only(sites: Sites) -> None:
    inside = sites.a.run("stat", "-f", "-c", "%T", sites.a.scratch).strip()
    assert inside == "tmpfs"
    assert processes.run(["stat", "-f", "-c", "%T", sites.a.scratch]).strip() != "tmpfs"
