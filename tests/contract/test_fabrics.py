"""What every fabric does, run against the twin in memory and against libvirt with a real guest."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.fabrics.base import Capture, DiskCapture, Quiesce, Source
from secondsite.fabrics.errors import (
    MachineUnknown,
    NotIsolated,
    SourceBusy,
    SourceGone,
    TrackingLost,
    Unprotectable,
)
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import PowerState
from secondsite.model.points import Consistency
from support.fabrics import Bench, LibvirtBench, MemoryBench, shared_tmpfs
from support.lab import boot_files

PAGE = 4096
SPOT = 64 * 1024  # what the coarsest tracking counts as one


@pytest.fixture(scope="module", params=["memory", pytest.param("libvirt", marks=pytest.mark.libvirt)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        yield MemoryBench()
        return
    if os.geteuid() != 0:
        pytest.skip("sites need root (./run test uses sudo)")
    sites = request.getfixturevalue("sites")
    with ExitStack() as stack:
        made = LibvirtBench(sites.a, boot_files(), stack.enter_context(shared_tmpfs()))
        stack.callback(made.close)
        yield made


@pytest.fixture
def source(bench: Bench) -> Iterator[Source]:
    opened = bench.fabric.open_source(bench.machine)
    yield opened
    opened.release()
    assert list(opened.checkpoints()) == []


def take(
    source: Source, since: str | None, checkpoint: str | None, quiesce: Quiesce = Quiesce.NONE
) -> Capture:
    return source.capture(since=since, checkpoint=checkpoint, quiesce=quiesce)


def disk_of(capture: Capture, name: str) -> DiskCapture:
    return next(disk for disk in capture.disks if disk.id == name)


def content(disk: DiskCapture, offset: int, length: int) -> bytes:
    return b"".join(bytes(data) for _, data in disk.read([(offset, length)]))


def covers(extents: Extents, offset: int, length: int) -> bool:
    return extents.intersect(Extents.of([(offset, offset + length)])).total_bytes == length


def test_inventory_names_the_machine_and_its_disks(bench: Bench) -> None:
    machine = next(found for found in bench.fabric.machines() if found.id == bench.machine)
    assert [disk.id for disk in machine.disks] == ["vda", "vdb"]
    assert all(disk.size_bytes >= 8 * MIB for disk in machine.disks)
    assert machine.power is PowerState.RUNNING
    assert machine.agent
    assert machine.unprotectable == ()
    assert machine.host in [host.name for host in bench.fabric.hosts()]


def test_unknown_machine_is_named(bench: Bench) -> None:
    with pytest.raises(MachineUnknown):
        bench.fabric.open_source(MachineId(str(uuid.uuid4())))


def test_a_disk_it_does_not_have_is_refused(bench: Bench) -> None:
    with pytest.raises(Unprotectable, match="vdz"):
        bench.fabric.open_source(bench.machine, [DiskId("vdz")])


def test_only_chosen_disks_are_captured(bench: Bench) -> None:
    opened = bench.fabric.open_source(bench.machine, [DiskId("vdb")])
    with take(opened, None, "chosen") as capture:
        assert [disk.id for disk in capture.disks] == ["vdb"]
    opened.release()


def test_a_disk_that_is_left_out_is_not_captured_and_read_whole_when_it_is_back(bench: Bench) -> None:
    opened = bench.fabric.open_source(bench.machine)
    names = [disk.id for disk in opened.machine.disks]
    out = next(name for name in names if name != bench.disk)
    with take(opened, None, "all") as capture:
        assert [disk.id for disk in capture.disks] == names
    fewer = bench.fabric.open_source(bench.machine, left_out=[out, DiskId("vdz")], taken=True)
    bench.write(bench.free_offset, b"\x11" * PAGE)
    with take(fewer, "all", "fewer") as capture:
        assert [disk.id for disk in capture.disks] == [name for name in names if name != out]
        assert capture.left_out == {}
        assert covers(disk_of(capture, bench.disk).changed(), bench.free_offset, PAGE)
    again = bench.fabric.open_source(bench.machine, taken=True)
    with take(again, "fewer", "back") as capture:
        assert [disk.id for disk in capture.disks] == names
        assert disk_of(capture, out).untracked
        assert not disk_of(capture, bench.disk).untracked
    again.release()
    assert list(again.checkpoints()) == []


def test_first_capture_has_everything_allocated(bench: Bench, source: Source) -> None:
    at = bench.free_offset + SPOT
    bench.write(at, b"\x5a" * PAGE)
    with take(source, None, None) as capture:
        disk = disk_of(capture, bench.disk)
        assert disk.size_bytes == next(d.size_bytes for d in source.machine.disks if d.id == bench.disk)
        assert covers(disk.changed(), at, PAGE)
        assert content(disk, at, PAGE) == b"\x5a" * PAGE
        # beside it nothing was ever written: it reads as zero, whether it is listed or not
        assert content(disk, at + PAGE, PAGE) == bytes(PAGE)
    assert list(source.checkpoints()) == []


def test_increment_has_what_changed_and_little_else(bench: Bench, source: Source) -> None:
    base = bench.free_offset
    bench.write(base, b"\x01" * PAGE)
    take(source, None, "one").close()
    bench.write(base + 2 * SPOT, b"\x02" * (2 * PAGE))
    with take(source, "one", "two") as capture:
        changed = disk_of(capture, bench.disk).changed()
        assert covers(changed, base + 2 * SPOT, 2 * PAGE)
        assert not len(changed.intersect(Extents.of([(base, base + SPOT)])))
        assert content(disk_of(capture, bench.disk), base + 2 * SPOT, 2 * PAGE) == b"\x02" * (2 * PAGE)
    with take(source, "two", None) as capture:
        mine = disk_of(capture, bench.disk).changed().clip(base, base + 16 * SPOT)
        assert mine.total_bytes == 0


def test_content_is_of_the_instant_not_of_the_reading(bench: Bench, source: Source) -> None:
    at = bench.free_offset + 4 * SPOT
    bench.write(at, b"\x11" * PAGE)
    with take(source, None, "before") as capture:
        bench.write(at, b"\x22" * PAGE)
        assert content(disk_of(capture, bench.disk), at, PAGE) == b"\x11" * PAGE
    with take(source, "before", None) as capture:
        assert covers(disk_of(capture, bench.disk).changed(), at, PAGE)
        assert content(disk_of(capture, bench.disk), at, PAGE) == b"\x22" * PAGE


def test_zeros_written_over_data_are_a_change(bench: Bench, source: Source) -> None:
    at = bench.free_offset + 6 * SPOT
    bench.write(at, b"\x33" * PAGE)
    take(source, None, "full").close()
    bench.write(at, bytes(PAGE))
    with take(source, "full", None) as capture:
        assert covers(disk_of(capture, bench.disk).changed(), at, PAGE)
        assert content(disk_of(capture, bench.disk), at, PAGE) == bytes(PAGE)


def test_what_a_forgotten_checkpoint_knew_counts_since_the_older_one(bench: Bench, source: Source) -> None:
    base = bench.free_offset + 8 * SPOT
    take(source, None, "a").close()
    bench.write(base, b"\x41" * PAGE)
    take(source, "a", "b").close()
    bench.write(base + SPOT, b"\x42" * PAGE)
    take(source, "b", "c").close()
    bench.write(base + 2 * SPOT, b"\x43" * PAGE)
    assert list(source.checkpoints()) == ["a", "b", "c"]
    source.forget("b")
    source.forget("b")
    source.forget("never-made")
    assert list(source.checkpoints()) == ["a", "c"]
    with take(source, "a", None) as capture:
        changed = disk_of(capture, bench.disk).changed()
        assert all(covers(changed, base + spot * SPOT, PAGE) for spot in range(3))
    with take(source, "c", None) as capture:
        changed = disk_of(capture, bench.disk).changed()
        assert covers(changed, base + 2 * SPOT, PAGE)
        assert not covers(changed, base + SPOT, PAGE)


def test_an_abandoned_cycle_is_counted_again(bench: Bench, source: Source) -> None:
    base = bench.free_offset + 16 * SPOT
    take(source, None, "kept").close()
    bench.write(base, b"\x51" * PAGE)
    take(source, "kept", "abandoned").close()
    bench.write(base + SPOT, b"\x52" * PAGE)
    with take(source, "kept", "next") as capture:
        changed = disk_of(capture, bench.disk).changed()
        assert covers(changed, base, PAGE)
        assert covers(changed, base + SPOT, PAGE)


def test_since_a_checkpoint_never_made_is_tracking_lost(source: Source) -> None:
    with pytest.raises(TrackingLost) as caught:
        take(source, "never-made", "x")
    assert caught.value.retryable
    assert list(source.checkpoints()) == []


def test_one_capture_at_a_time_and_none_after_its_end(bench: Bench, source: Source) -> None:
    first = take(source, None, None)
    disk = disk_of(first, bench.disk)
    disk.changed()
    with pytest.raises(SourceBusy):
        take(source, None, None)
    first.close()
    first.close()
    with pytest.raises(SecondsiteError) as caught:
        list(disk.read([(0, PAGE)]))
    assert caught.value.retryable
    take(source, None, None).close()


def test_freeze_is_measured_and_earns_its_label(source: Source) -> None:
    with take(source, None, None, Quiesce.FREEZE) as capture:
        instant = capture.instant
    assert instant.consistency is Consistency.APPLICATION, instant.note
    assert instant.frozen_seconds is not None
    assert 0 < instant.frozen_seconds < 10
    assert instant.note == ""
    with take(source, None, None) as capture:
        assert capture.instant.consistency is Consistency.CRASH
        assert capture.instant.frozen_seconds is None


def test_asked_comes_before_given(source: Source) -> None:
    with take(source, None, None) as capture:
        instant = capture.instant
    assert instant.asked_at <= instant.given_at
    assert len(instant.asked_at) >= len("2026-01-01T00:00:00.000000Z")


def test_definition_travels(bench: Bench, source: Source) -> None:
    definition = source.definition()
    assert definition.format in {"memory", "libvirt-domain"}
    assert "quiet" in definition.text
    assert bench.machine in definition.text


def test_a_second_source_finds_the_checkpoints_of_the_first(bench: Bench, source: Source) -> None:
    take(source, None, "left").close()
    again = bench.fabric.open_source(bench.machine)
    assert list(again.checkpoints()) == ["left"]
    take(again, "left", "more").close()
    assert list(source.checkpoints()) == ["left", "more"]


def test_what_it_lets_us_do_is_tried_and_leaves_nothing(bench: Bench) -> None:
    before = [machine.id for machine in bench.fabric.machines()]
    found = bench.fabric.readiness()
    assert found
    assert [(check.code, check.why) for check in found if not check.ok] == []
    assert [machine.id for machine in bench.fabric.machines()] == before


def test_isolated_network_is_made_once_and_removed(bench: Bench) -> None:
    made = bench.fabric.make_isolated_network("contract-isolated")
    assert made.isolated
    assert made.active
    assert bench.fabric.make_isolated_network("contract-isolated") == made
    bench.fabric.remove_network("contract-isolated")
    bench.fabric.remove_network("contract-isolated")
    assert "contract-isolated" not in [network.name for network in bench.fabric.networks()]


def test_a_network_of_others_is_not_removed(bench: Bench) -> None:
    others = [network.name for network in bench.fabric.networks()]
    for name in others:
        bench.fabric.remove_network(name)
    assert [network.name for network in bench.fabric.networks()] == others


def test_switched_off_it_is_gone_and_switched_on_it_goes_on(bench: Bench, source: Source) -> None:
    base = bench.free_offset + 24 * SPOT
    bench.write(base, b"\x61" * PAGE)
    take(source, None, "off").close()
    bench.write(base + SPOT, b"\x62" * PAGE)
    bench.power_off()
    try:
        with pytest.raises(SourceGone) as caught:
            take(source, "off", None)
        assert caught.value.retryable
        assert source.machine.power is PowerState.OFF
    finally:
        bench.power_on()
    with take(source, "off", None) as capture:
        changed = disk_of(capture, bench.disk).changed()
        assert covers(changed, base + SPOT, PAGE)
        assert not covers(changed, base, PAGE)


def power_of(bench: Bench) -> PowerState:
    return next(found for found in bench.fabric.machines() if found.id == bench.machine).power


def test_an_isolated_machine_stands_still_until_it_is_let_go(bench: Bench, source: Source) -> None:
    fabric = bench.fabric
    take(source, None, "before").close()
    bench.write(bench.free_offset, b"\x6b" * PAGE)
    assert fabric.isolated(bench.machine) is None
    assert fabric.isolate(bench.machine, why="it runs elsewhere", autostart=True)
    assert not fabric.isolate(bench.machine, why="again", autostart=True), "nothing was left to do"
    assert (power_of(bench), fabric.isolated(bench.machine)) == (PowerState.PAUSED, "it runs elsewhere")
    # its last writes are all there, and so is what tracks them
    with take(source, "before", "held") as capture:
        assert covers(disk_of(capture, bench.disk).changed(), bench.free_offset, PAGE)
    fabric.lift_isolation(bench.machine, run=True)
    fabric.lift_isolation(bench.machine, run=True)
    assert (power_of(bench), fabric.isolated(bench.machine)) == (PowerState.RUNNING, None)
    with pytest.raises(MachineUnknown):
        fabric.isolate(MachineId(str(uuid.uuid4())), why="-", autostart=False)
    assert fabric.isolated(MachineId(str(uuid.uuid4()))) is None


def test_only_an_isolated_machine_is_removed(bench: Bench) -> None:
    for disks in (False, True):
        with pytest.raises(NotIsolated, match="not isolated"):
            bench.fabric.remove_machine(bench.machine, disks=disks)
    assert power_of(bench) is PowerState.RUNNING
    assert list(bench.fabric.remove_machine(MachineId(str(uuid.uuid4())), disks=True)) == []


def test_a_machine_that_is_off_is_held_open_to_be_captured_and_keeps_its_tracking(
    bench: Bench, source: Source
) -> None:
    take(source, None, "before").close()
    bench.write(bench.free_offset, b"\x6c" * PAGE)
    bench.power_off()
    bench.fabric.isolate(bench.machine, why="it is moved", autostart=True)
    try:
        bench.fabric.hold_open(bench.machine)
        bench.fabric.hold_open(bench.machine)
        assert power_of(bench) is PowerState.PAUSED
        with take(source, "before", "last") as capture:
            disk = disk_of(capture, bench.disk)
            assert covers(disk.changed(), bench.free_offset, PAGE)
            assert content(disk, bench.free_offset, PAGE) == b"\x6c" * PAGE
        bench.fabric.power_off(bench.machine)
        bench.fabric.power_off(bench.machine)
        assert source.power() is PowerState.OFF
        bench.fabric.hold_open(bench.machine)
        with take(source, "last", None) as capture:
            assert disk_of(capture, bench.disk).changed().total_bytes == 0, "nothing executed meanwhile"
        bench.fabric.power_off(bench.machine)
    finally:
        bench.fabric.lift_isolation(bench.machine, run=False)
        bench.power_on()
