"""The healing matrix on the in-memory twin, through the real replication loop.

Each row is trouble that befalls a machine between two points. Whatever it was: the next point holds what the
source held at its instant, older points read as before, the trouble is an event, and no more travels than
has to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import KIB, MIB
from secondsite.gateway.source import cycle, findings
from secondsite.gateway.source.pace import Policy
from secondsite.gateway.source.replicate import Replication
from secondsite.model.ids import DiskId
from secondsite.model.machines import PowerState
from secondsite.model.states import ItemState
from support.source_rig import Rig


class JumpingClock(SystemClock):
    """The machine's, whose time of day a test sets."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def utc(self) -> datetime:
        return super().utc() + self.ahead


class Scene:
    """A protected machine with a point, ready for trouble."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.fabric, self.machine = rig.fabric, rig.machine
        rig.fabric.write(rig.machine, "vda", 0, rig.chance.randbytes(4 * MIB))
        rig.fabric.write(rig.machine, "vdb", 0, rig.chance.randbytes(2 * MIB))
        self.replication: Replication = rig.open(frequency_seconds=3600)
        rig.until(lambda: self.replication.board.state is ItemState.PROTECTED, "Protected")
        self.take_point()

    def take_point(self) -> int:
        """A point of now, compared with the source."""
        content = self.rig.content()
        taken = self.replication.take_point(seconds_max=30)
        assert self.rig.view(taken.number) == content, self.rig.texts()
        return taken.number

    def change(self, disk: str = "vda", offset: int = 128 * KIB, size: int = 4 * KIB) -> None:
        """The guest writes something that does not compress."""
        self.fabric.write(self.machine, disk, offset, self.rig.chance.randbytes(size))

    def power(self, state: PowerState) -> None:
        self.fabric.set_power(self.machine, state)

    def until_told(self, code: str) -> None:
        self.rig.until(lambda: code in self.rig.codes(), code)

    def off_noticed(self) -> None:
        """The loop has seen that the machine is off, and looked at its images."""
        self.replication.set_policy(Policy(copy_frequency_seconds=0.05))
        self.until_told("fabric.source-off")
        source = self.replication._bench.source
        assert source.power() is PowerState.OFF
        self.replication.set_policy(Policy(copy_frequency_seconds=3600))

    def restart_gateway(self) -> None:
        self.rig.close()
        self.replication = self.rig.open(frequency_seconds=3600)


@dataclass(frozen=True)
class Row:
    """Trouble, the events it must raise, and what may travel (the twin's tracking counts 64 KiB as one)."""

    trouble: Callable[[Scene], None]
    events: tuple[str, ...]
    resync: bool = False
    sent_bytes_max: int = 64 * KIB


def nothing(_scene: Scene) -> None:
    """A cycle like any other, to compare with."""


def guest_reboots(scene: Scene) -> None:
    """Inside: the hypervisor process goes on, and with it every bitmap."""
    scene.change("vdb", 0)


def clean_restart(scene: Scene) -> None:
    scene.change()
    scene.power(PowerState.OFF)
    scene.off_noticed()
    scene.power(PowerState.RUNNING)
    scene.change("vdb")


def clean_restart_between_cycles(scene: Scene) -> None:
    scene.power(PowerState.OFF)
    scene.power(PowerState.RUNNING)
    scene.change()


def gateway_restarts_while_off(scene: Scene) -> None:
    scene.change()
    scene.power(PowerState.OFF)
    scene.restart_gateway()
    scene.until_told("fabric.source-off")
    scene.power(PowerState.RUNNING)


def bitmaps_and_records_lost(scene: Scene) -> None:
    scene.change()
    scene.fabric.lose_tracking(scene.machine)


def bitmaps_lost(scene: Scene) -> None:
    scene.change()
    scene.fabric.lose_bitmaps(scene.machine)


def bitmap_of_one_disk_lost(scene: Scene) -> None:
    scene.change()
    scene.fabric.lose_bitmaps(scene.machine, "vdb")


def records_lost(scene: Scene) -> None:
    scene.change()
    scene.fabric.lose_records(scene.machine)


def hypervisor_killed(scene: Scene) -> None:
    scene.change()
    scene.fabric.kill_hypervisor(scene.machine)
    scene.off_noticed()
    scene.power(PowerState.RUNNING)
    scene.change("vdb")


def written_while_off(scene: Scene) -> None:
    scene.power(PowerState.OFF)
    scene.off_noticed()
    scene.fabric.write_offline(scene.machine, "vda", MIB, b"changed behind its back")
    assert scene.replication._bench.source.power() is PowerState.OFF
    scene.power(PowerState.RUNNING)


def all_written_while_off(scene: Scene) -> None:
    scene.power(PowerState.OFF)
    scene.off_noticed()
    for disk in ("vda", "vdb"):
        scene.fabric.write_offline(scene.machine, disk, MIB, b"changed behind its back")
    assert scene.replication._bench.source.power() is PowerState.OFF
    scene.power(PowerState.RUNNING)


def disk_grows(scene: Scene) -> None:
    scene.fabric.resize(scene.machine, "vdb", 6 * MIB)
    scene.change("vdb", 5 * MIB)


def disk_shrinks(scene: Scene) -> None:
    scene.fabric.resize(scene.machine, "vdb", MIB)


def disk_shrinks_and_grows_again(scene: Scene) -> None:
    scene.fabric.resize(scene.machine, "vdb", MIB)
    scene.take_point()
    scene.fabric.resize(scene.machine, "vdb", 4 * MIB)


def disk_added(scene: Scene) -> None:
    scene.fabric.add_disk(scene.machine, "vdc", 2 * MIB)
    scene.change("vdc", 0, 100 * KIB)


def disk_added_while_off(scene: Scene) -> None:
    scene.power(PowerState.OFF)
    scene.off_noticed()
    scene.fabric.add_disk(scene.machine, "vdc", 2 * MIB)
    scene.power(PowerState.RUNNING)
    scene.change("vdc", 0, 100 * KIB)


def disk_added_while_the_gateway_is_down(scene: Scene) -> None:
    scene.rig.close()
    scene.fabric.add_disk(scene.machine, "vdc", 2 * MIB)
    scene.change("vdc", 0, 100 * KIB)
    scene.replication = scene.rig.open(frequency_seconds=3600)


def disk_removed(scene: Scene) -> None:
    scene.fabric.remove_disk(scene.machine, "vdb")
    scene.change()


def disk_removed_while_the_gateway_is_down(scene: Scene) -> None:
    scene.rig.close()
    scene.fabric.remove_disk(scene.machine, "vdb")
    scene.replication = scene.rig.open(frequency_seconds=3600)


def another_disk_under_the_same_name(scene: Scene) -> None:
    """Of the old one nothing may shine through where the new one has holes."""
    scene.fabric.remove_disk(scene.machine, "vdb")
    scene.take_point()
    scene.fabric.add_disk(scene.machine, "vdb", 4 * MIB)
    scene.change("vdb", 3 * MIB, 100 * KIB)


def a_disk_exchanged_at_once(scene: Scene) -> None:
    scene.fabric.remove_disk(scene.machine, "vdb")
    scene.fabric.add_disk(scene.machine, "vdb", 4 * MIB)
    scene.change("vdb", 3 * MIB, 50 * KIB)


def disk_that_cannot_be_followed(scene: Scene) -> None:
    scene.fabric.add_disk(scene.machine, "vdc", MIB, refused="disk vdc is raw")
    scene.change()


def snapshot_taken(scene: Scene) -> None:
    scene.fabric.take_snapshot(scene.machine)
    scene.change()


def snapshot_taken_and_merged(scene: Scene) -> None:
    snapshot_taken(scene)
    scene.take_point()
    scene.fabric.merge_snapshot(scene.machine)
    scene.change("vdb")


def migrated_away_and_back(scene: Scene) -> None:
    scene.fabric.migrate_away(scene.machine, "it runs at another host")
    scene.replication.set_policy(Policy(copy_frequency_seconds=0.05))
    scene.until_told("fabric.source-moved")
    scene.change()  # at the other host, tracked by the bitmaps it took along
    scene.fabric.migrate_away(scene.machine, "")
    scene.replication.set_policy(Policy(copy_frequency_seconds=3600))


def daemon_restarted(scene: Scene) -> None:
    scene.fabric.stop_daemon("connection refused")
    scene.replication.set_policy(Policy(copy_frequency_seconds=0.05))
    scene.until_told("fabric.hypervisor-unreachable")
    scene.change()
    scene.fabric.stop_daemon("")
    scene.replication.set_policy(Policy(copy_frequency_seconds=3600))


def clock_jumps(hours: int) -> Callable[[Scene], None]:
    def jump(scene: Scene) -> None:
        clock = scene.rig.clock
        assert isinstance(clock, JumpingClock)
        clock.ahead += timedelta(hours=hours)
        scene.change()

    return jump


MATRIX = {
    "nothing": Row(nothing, ()),
    "the guest reboots": Row(guest_reboots, ()),
    "a clean restart": Row(clean_restart, ("fabric.source-off", "replicate.recovered")),
    "a clean restart between two cycles": Row(clean_restart_between_cycles, ()),
    "the gateway restarts while it is off": Row(gateway_restarts_while_off, ("fabric.source-off",)),
    "bitmaps and records lost": Row(
        bitmaps_and_records_lost, ("tracking.checkpoint-unknown", "replicate.resync"), resync=True
    ),
    "bitmaps lost": Row(bitmaps_lost, ("tracking.bitmap-lost", "replicate.resync"), resync=True),
    "the bitmap of one disk lost": Row(bitmap_of_one_disk_lost, ("source.disk-untracked",)),
    "records lost": Row(records_lost, ("tracking.checkpoint-recalled",)),
    "the hypervisor killed": Row(
        hypervisor_killed, ("fabric.source-off", "tracking.bitmap-lost", "replicate.resync"), resync=True
    ),
    "an image written to while off": Row(written_while_off, ("source.disk-untracked",)),
    "all images written to while off": Row(
        all_written_while_off, ("tracking.changed-while-off", "replicate.resync"), resync=True
    ),
    "a disk grows": Row(disk_grows, ("source.disk-grown",)),
    "a disk shrinks": Row(disk_shrinks, ("source.disk-shrunk",)),
    "a disk shrinks and grows again": Row(
        disk_shrinks_and_grows_again, ("source.disk-shrunk", "source.disk-grown")
    ),
    "a disk added": Row(disk_added, ("source.disk-added",), sent_bytes_max=200 * KIB),
    "a disk added while off": Row(disk_added_while_off, ("source.disk-added",), sent_bytes_max=200 * KIB),
    "a disk added while the gateway is down": Row(
        disk_added_while_the_gateway_is_down, ("source.disk-added",), sent_bytes_max=200 * KIB
    ),
    "a disk removed": Row(disk_removed, ("source.disk-removed",)),
    "a disk removed while the gateway is down": Row(
        disk_removed_while_the_gateway_is_down, ("source.disk-removed",)
    ),
    "another disk under the same name": Row(
        another_disk_under_the_same_name,
        ("source.disk-removed", "source.disk-added"),
        sent_bytes_max=200 * KIB,
    ),
    "a disk exchanged at once": Row(
        a_disk_exchanged_at_once, ("source.disk-untracked",), sent_bytes_max=200 * KIB
    ),
    "a disk that cannot be followed": Row(disk_that_cannot_be_followed, ("source.disk-left-out",)),
    "a snapshot taken": Row(snapshot_taken, ("source.image-switched",)),
    "a snapshot taken and merged": Row(snapshot_taken_and_merged, ("source.image-switched",)),
    "migrated away and back": Row(
        migrated_away_and_back, ("fabric.source-moved", "tracking.checkpoint-recalled")
    ),
    "the host's daemon restarted": Row(
        daemon_restarted, ("fabric.hypervisor-unreachable", "replicate.recovered")
    ),
    "the clock jumps forward": Row(clock_jumps(5), ("gateway.clock-jumped",)),
    "the clock jumps back": Row(clock_jumps(-5), ("gateway.clock-jumped",)),
}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    rig = Rig(tmp_path, clock=JumpingClock())
    yield Scene(rig)
    rig.close()


@pytest.mark.parametrize("name", MATRIX)
def test_trouble_is_told_and_healed(name: str, scene: Scene) -> None:
    row, rig = MATRIX[name], scene.rig
    older = {point.number: rig.view(point.number) for point in rig.points()}
    before = rig.points()[-1].number
    told = len(rig.codes())
    row.trouble(scene)
    scene.take_point()
    scene.change(size=512)
    scene.take_point()  # and it goes on from there by increments
    codes = rig.codes()[told:]
    missing = [code for code in row.events if code not in codes]
    assert not missing, f"{missing} were not told:\n{rig.texts()}"
    assert codes.count("replicate.resync") == int(row.resync), rig.texts()
    assert "replicate.rpo-missed" not in codes
    assert not [code for code in codes if code.endswith("internal-error")], rig.texts()
    numbers = [point.number for point in rig.points()]
    assert numbers == sorted(numbers)
    for number, content in older.items():
        assert rig.view(number) == content, f"point {number} reads otherwise after: {name}"
    sent = sum(point.sent_bytes for point in rig.points() if point.number > before)
    assert sent <= row.sent_bytes_max, f"{sent} bytes travelled"


def test_every_finding_is_told_once(scene: Scene) -> None:
    scene.fabric.add_disk(scene.machine, "vdc", MIB)
    scene.fabric.add_disk(scene.machine, "vdd", MIB, refused="disk vdd is raw")
    for _ in range(3):
        scene.take_point()
    codes = scene.rig.codes()
    assert codes.count("source.disk-added") == 1
    assert codes.count("source.disk-left-out") == 1


def test_what_is_too_much_for_one_capture_is_read_in_slices(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "UNTRACKED_BYTES_MAX", MIB)
    scene.fabric.add_disk(scene.machine, "vdc", 4 * MIB)
    scene.change("vdc", 0, 3 * MIB)
    scene.change("vda", 0)
    number = scene.take_point()
    assert "replicate.resync" in scene.rig.codes()
    assert "vdc" in scene.rig.texts()
    sent = sum(point.sent_bytes for point in scene.rig.points() if point.number >= number - 1)
    assert sent < 3 * MIB + 200 * KIB, "of the other disks only what changed"
    scene.change("vdc", MIB)
    scene.take_point()


def test_a_disk_that_was_in_points_and_cannot_be_followed_any_more_holds_them(scene: Scene) -> None:
    """Points without it would pass for whole."""
    before = scene.rig.points()[-1].number
    machine = scene.fabric._find(scene.machine)
    machine.refused[DiskId("vdb")] = "disk vdb is raw"
    scene.replication.set_policy(Policy(copy_frequency_seconds=0.05))
    scene.until_told("fabric.unprotectable")
    assert scene.rig.points()[-1].number == before
    assert scene.replication.board.show(spool_bytes=0).note.startswith("shop cannot be protected")


def test_a_disk_removed_in_a_first_copy_begins_it_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.fabric.write(rig.machine, "vda", 0, rig.chance.randbytes(4 * MIB))
    replication = rig.open(frequency_seconds=3600, start=False)
    source = replication._bench.source
    capture = source.capture
    captures = 0

    def counted(**arguments: object) -> object:
        nonlocal captures
        captures += 1
        if captures == 2:  # after the slices, before what closes them
            rig.fabric.remove_disk(rig.machine, "vdb")
        return capture(**arguments)  # type: ignore[arg-type]

    source.capture = counted  # type: ignore[method-assign, assignment]
    replication.start()
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    assert rig.view(rig.points()[-1].number) == rig.content()
    assert set(rig.content()) == {"vda"}
    assert "replicate.disks-changed" in rig.codes()
    rig.close()


def test_rpo_is_not_the_time_of_days_business(scene: Scene) -> None:
    clock = scene.rig.clock
    assert isinstance(clock, JumpingClock)
    for hours in (24, -48):
        clock.ahead = timedelta(hours=hours)
        rpo = scene.replication.board.rpo_seconds()
        assert rpo is not None
        assert rpo < 60


def test_the_document_has_every_event_and_every_test() -> None:
    root = Path(__file__).resolve().parents[3]
    text = (root / "docs" / "healing.md").read_text()
    events = {event for row in MATRIX.values() for event in row.events}
    events |= {row.code for row in findings.ROWS}
    assert not {event for event in events if f"`{event}`" not in text}
    real = re.findall(r"^def (test_\w+)", (root / "tests/e2e/test_healing.py").read_text(), re.MULTILINE)
    assert real
    assert not [name for name in real if name not in text]
    source = "".join(path.read_text() for path in (root / "src/secondsite").rglob("*.py"))
    told = set(re.findall(r"`((?:source|tracking|fabric|replicate|gateway)\.[a-z-]+)`", text))
    assert not {code for code in told if f'"{code}"' not in source}
