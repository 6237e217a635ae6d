"""Reversing onto a held source, killed anywhere, refused where it must be, and taken back."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from secondsite.base.crash import MARKS
from secondsite.fabrics.errors import SourceBusy
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.failover import fencing
from secondsite.gateway.messages.adopterrors import AdoptionUnknown
from secondsite.gateway.messages.adoption import AdoptionState, AdoptionStatus, AdoptRequest
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState, ReverseStatus
from secondsite.gateway.messages.reverseerrors import (
    DisksGone,
    MachineGone,
    MovedForGood,
    ReverseComplete,
    ReverseExists,
    ReverseRefused,
)
from secondsite.gateway.reverse import service as reverse
from secondsite.gateway.reverse import steps as reversesteps
from secondsite.gateway.reverse.checks import Looker, Volumes, file_system
from secondsite.gateway.reverse.service import Reversals
from secondsite.gateway.reverse.steps import ReverseSteps
from secondsite.journal.chain import Journal
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.confirmations import ConfirmationMissing
from secondsite.model.failover import MIGRATED, HeldState
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState
from secondsite.model.reversals import reversed_onto
from secondsite.transfer.errors import PeerNotAllowed
from secondsite.transfer.protocols import Link, Peer
from support.circle import CircleFabric
from support.failover_twin import A, B, Killed, Twin

OPERATION = "ab" * 16
FORTH = {"reverse.intended", *(m for m in MARKS if m.startswith("reverse.") and ".back-" not in m)}
BACK = {m for m in MARKS if m.startswith("reverse.back-")}


@dataclass
class Protecting:
    """What is protected at A, which outlives its gateway."""

    found: Protection | None
    rounds: int = 0

    def protection(self, machine: MachineId) -> Protection | None:
        return self.found

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        return []

    def end(self, machine: MachineId) -> bool:
        if self.found is not None and self.rounds < 2:
            self.rounds += 1
            self.found = msgspec.structs.replace(self.found, enabled=False)
        else:
            self.found = None
        return self.found is None

    def put_back(self, protection: Protection) -> None:
        assert self.found is None
        self.found = protection


@dataclass
class Adoptions:
    """Copies that are offered at A, which outlive its gateway."""

    of: dict[MachineId, AdoptionStatus] = field(default_factory=dict)

    def begin(self, machine: MachineId, name: str, request: AdoptRequest) -> AdoptionStatus:
        before = self.of.get(machine)
        assert before is None or before.state is AdoptionState.CANCELLED, "offered once"
        assert all(Path(image.path).stat().st_size for image in request.images.values())
        made = AdoptionStatus(
            machine=machine,
            name=name,
            state=AdoptionState.OFFERED,
            images=(),
            begun_at="2026-05-04T23:00:00+00:00",
            total_bytes=7,
        )
        return self.of.setdefault(machine, made) if before is None else self._set(machine, made)

    def _set(self, machine: MachineId, made: AdoptionStatus) -> AdoptionStatus:
        self.of[machine] = made
        return made

    def show(self, machine: MachineId) -> AdoptionStatus:
        if machine not in self.of:
            raise AdoptionUnknown(machine=machine)
        return self.of[machine]

    def cancel(self, machine: MachineId) -> AdoptionStatus:
        return self._set(machine, msgspec.structs.replace(self.of[machine], state=AdoptionState.CANCELLED))


class Site:
    """A, which lost its machine to B and holds it, with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.twin = Twin(root)
        self.twin.a_fabric = self.fabric = CircleFabric(root / "images")
        self.machine = self.fabric.add_machine("shop", {"vda": 1 << 20}, machine=self.twin.machine)
        self.twin.start_a()
        self.twin.commit_as_a()
        self.twin.failover("cd" * 16)
        self.twin.look()
        self.store = MemoryStore()
        self.protection = Protection(machine=self.machine, name="shop", peer=B)
        self.protecting, self.adoptions = Protecting(self.protection), Adoptions()
        (root / "store").mkdir()
        self.volumes = Volumes(root / "store", None, root / "cache")
        self.forbidden = False
        self.forgotten: list[MachineId] = []
        self.start()

    def start(self) -> None:
        self.twin.start_a()
        assert self.twin.a is not None
        self.reversals = Reversals(
            fabric=self.fabric,
            fencing=self.twin.a,
            protecting=self.protecting,
            adoptions=self.adoptions,
            journal=self.journal,
            forget=self.forgotten.append,
            looker=Looker(self.fabric, self.volumes, self.may_write, self.twin.clock),
            base_dir=None,
            state_dir=self.twin.root / "a",
            clock=self.twin.clock,
            events=self.twin.events,
        )
        self.reversals.resume()

    def journal(self, machine: MachineId) -> Journal:
        return Journal(self.store, machine, self.twin.vault)

    def may_write(self, peer: str, machine: MachineId) -> None:
        if self.forbidden:
            raise PeerNotAllowed(peer=peer, machine=machine, why="this gateway does not know the peer")

    def reverse(self, operation: str = OPERATION, confirm: str = reversed_onto("shop")) -> ReverseStatus:
        self.reversals.start(self.machine, ReverseRequest(operation=operation, confirm=confirm))
        return self.settled()

    def settled(self) -> ReverseStatus:
        self.reversals._threads.wait()
        return self.reversals.get(self.machine)

    def held(self) -> HeldState:
        assert self.twin.a is not None
        found = self.twin.a.get(self.machine)
        assert found is not None
        return found.state

    def checks(self) -> dict[str, Check]:
        return {check.name: check for check in self.reversals.preview(self.machine).checks}


@pytest.fixture
def site() -> Iterator[Site]:
    shared = Path("/dev/shm")
    where = shared if shared.is_dir() else None
    quick = mock.patch.object(reversesteps, "POLL_SECONDS", 0.0)
    with tempfile.TemporaryDirectory(dir=where) as name, quick:
        yield Site(Path(name))


@contextlib.contextmanager
def dying_at(mark: str) -> Iterator[list[str]]:
    died: list[str] = []

    def crash_point(name: str) -> None:
        if name == mark and not died:
            died.append(name)
            raise Killed

    with (
        contextlib.suppress(Killed),
        mock.patch.object(reverse, "crash_point", crash_point),
        mock.patch.object(fencing, "crash_point", crash_point),
        mock.patch.object(threading, "excepthook"),
    ):
        yield died


def require_ready(site: Site, status: ReverseStatus) -> None:
    assert (status.state, status.error, status.epoch, status.epoch_floor) == (ReverseState.READY, None, 3, 2)
    claim = site.journal(site.machine).head().claim
    assert claim is not None
    assert (claim.claimant, claim.reason, claim.number, claim.epoch) == (B, "reverse", 1, 3)
    assert (site.held(), site.protecting.found) == (HeldState.REVERSED, None)
    assert site.fabric.machines()[0].power is PowerState.OFF
    assert site.adoptions.of[site.machine].state is AdoptionState.OFFERED


@pytest.mark.parametrize("mark", sorted(FORTH))
def test_killed_anywhere_it_goes_on_by_itself_and_ends_ready(mark: str, site: Site) -> None:
    with dying_at(mark) as died:
        site.reverse()
    assert died == [mark]
    site.start()
    require_ready(site, site.settled())
    require_ready(site, site.reverse())  # asked for again: the same one
    with pytest.raises(ReverseExists):
        site.reverse("ef" * 16)


@pytest.mark.parametrize("mark", sorted(BACK))
def test_taken_back_and_killed_anywhere_it_is_held_as_before(mark: str, site: Site) -> None:
    site.reverse()
    with dying_at(mark) as died:
        site.reversals.take_back(site.machine)
        site.settled()
    assert died == [mark]
    site.start()
    status = site.settled()
    assert (status.state, site.held()) == (ReverseState.TAKEN_BACK, HeldState.HELD)
    assert site.protecting.found == site.protection
    head = site.journal(site.machine).head()
    assert head.claim is not None
    assert (head.claim.claimant, head.epoch) == ("", 4)
    # and anew, in an epoch above
    assert site.reverse("ef" * 16).epoch == 5


def test_what_a_former_time_left_here_goes(site: Site) -> None:
    journal = site.journal(site.machine)
    journal.claim(
        name="shop", claimant=A, reason="failover", clock=site.twin.clock, expected=journal.head(), above=4
    )
    status = site.reverse()
    assert (status.epoch_floor, status.epoch) == (5, 6), "above what this site's own store had"
    assert [record.epoch for record in site.journal(site.machine).records()] == [6]
    assert site.forgotten == [site.machine]


def test_who_took_the_machine_over_later_keeps_the_store_it_writes(site: Site) -> None:
    """What this gateway knows of the writer is older: it would hold the authority, and end its copy."""
    journal = site.journal(site.machine)

    def claimed(reason: str, above: int) -> int:
        head = journal.head()
        return journal.claim(
            name="shop",
            claimant="gateway-c",
            reason=reason,
            clock=site.twin.clock,
            expected=head,
            above=above,
        ).epoch

    assert claimed("first copy", 0) == 1  # of an earlier time: it goes
    assert site.reverse().state is ReverseState.READY
    site.reversals.take_back(site.machine)
    assert site.settled().state is ReverseState.TAKEN_BACK
    assert claimed("first copy", 8) == 9
    check = site.checks()["journal"]
    assert check.cause.startswith("gateway-c writes shop here in epoch 9")
    with pytest.raises(ReverseRefused, match="gateway-c writes shop here in epoch 9"):
        site.reverse("ef" * 16)
    assert (site.held(), journal.head().epoch) == (HeldState.HELD, 9)


def test_one_that_was_begun_before_that_ends_with_the_reason_and_is_taken_back(site: Site) -> None:
    journal = site.journal(site.machine)

    def meanwhile(status: ReverseStatus) -> bool:
        head = journal.head()
        journal.claim(
            name="shop",
            claimant="gateway-c",
            reason="first copy",
            clock=site.twin.clock,
            expected=head,
            above=8,
        )
        return unprotect(site.reversals._steps, status)

    unprotect = ReverseSteps._unprotect
    with mock.patch.object(ReverseSteps, "_unprotect", lambda _steps, status: meanwhile(status)):
        status = site.reverse()
    assert (status.state, (status.error or {})["code"]) == (ReverseState.FAILED, "reverse.superseded")
    site.reversals.take_back(site.machine)
    assert site.settled().state is ReverseState.TAKEN_BACK
    claim = journal.head().claim
    assert claim is not None
    assert (claim.claimant, claim.epoch, site.held()) == ("gateway-c", 9, HeldState.HELD)


def test_it_is_said_word_for_word_and_nothing_is_done_before(site: Site) -> None:
    with pytest.raises(ConfirmationMissing) as caught:
        site.reverse(confirm="yes")
    assert reversed_onto("shop") in caught.value.sentences()[2]
    assert (site.held(), site.protecting.found) == (HeldState.HELD, site.protection)
    assert site.journal(site.machine).head().number == 0


def test_where_nothing_is_left_to_begin_with_it_says_so(site: Site) -> None:
    for image in (site.twin.root / "images").iterdir():
        image.unlink()
    with pytest.raises(DisksGone, match=r"vda: .* is not there"):
        site.reverse()
    del site.fabric._machines[site.machine]
    with pytest.raises(MachineGone) as caught:
        site.reverse()
    assert "a plain one" in caught.value.sentences()[2]


def test_nothing_is_reversed_onto_while_the_other_site_can_roll_back(site: Site) -> None:
    receiver = site.twin.receiver
    link = mock.Mock(head=lambda machine: receiver.head(Peer(name=A), machine))
    site.protecting.ways = lambda: [(site.machine, "shop", link)]  # type: ignore[method-assign]
    with pytest.raises(ReverseRefused, match="did not commit its failover"):
        site.reverse()
    assert site.twin.b is not None
    receiver.committed = site.twin.b.is_committed
    with pytest.raises(ReverseRefused, match="did not commit its failover"):
        site.reverse()
    link.head = mock.Mock(side_effect=SourceBusy(machine="shop", why="the line is cut"))
    with pytest.raises(ReverseRefused, match="cannot be asked now"):
        site.reverse()
    link.head = lambda machine: receiver.head(Peer(name=A), machine)
    site.twin.commit("cd" * 16)
    require_ready(site, site.reverse())


def test_what_moved_for_good_is_not_reversed(site: Site) -> None:
    journal = site.twin.journal
    journal.claim(name="shop", claimant=B, reason=MIGRATED, clock=site.twin.clock, expected=journal.head())
    site.twin.look()
    with pytest.raises(MovedForGood):
        site.reverse()


def test_every_check_that_fails_is_named_with_what_to_do(site: Site) -> None:
    found = site.checks()
    assert list(found) == ["committed", "disks", "shared-disks", "writer", "journal", "journal-volume"]
    assert [check.name for check in found.values() if not check.passed] == ["committed"]
    assert not found["committed"].required, "there is no way to ask any more"
    site.forbidden = True
    other = site.fabric.add_machine("other", {"vda": 4096})
    site.fabric.image(other, "vda").unlink()
    shared = mock.patch.object(CircleFabric, "image", lambda self, _machine, disk: self._images / disk)
    (site.twin.root / "images" / "vda").write_bytes(b"x" * 4096)
    bad = Volumes(site.twin.root / "images", None, site.twin.root / "cache")
    site.volumes = bad
    site.start()
    with shared, pytest.raises(ReverseRefused) as caught:
        site.reverse()
    happened, _, action = caught.value.sentences()
    for part in ("is a disk of other (vda) as well", "may not write", "images of machines lie in it"):
        assert part in happened
    assert "[peers]" in action
    site.volumes = Volumes(site.twin.root / "nowhere", None, site.twin.root)
    site.start()
    assert site.checks()["journal-volume"].cause.endswith("it is not there")


def test_the_kind_of_a_volume_is_read_from_the_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 8:2 / {tmp_path}/usb rw - vfat /dev/b rw\n3 1 8:3 / /proc rw - proc p rw\n"
    )
    assert file_system(tmp_path / "usb" / "store", mounts) == "vfat"
    assert file_system(tmp_path / "other", mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "missing") == ""


def test_it_is_not_taken_back_once_the_other_direction_has_a_point(site: Site) -> None:
    site.reverse()
    twin = site.twin
    twin.store, twin.epoch_of_a = site.store, 3
    with mock.patch("support.failover_twin.A", B):
        twin.receiver = twin.other_receiver = twin._receiver()
        point = twin.commit_as_a()
    assert point is not None
    assert site.reversals.get(site.machine).point == point.number
    with pytest.raises(ReverseComplete):
        site.reversals.take_back(site.machine)
    assert site.held() is HeldState.REVERSED


def test_a_step_that_fails_is_told_and_begun_again_when_asked(site: Site) -> None:
    failing = mock.patch.object(site.adoptions, "begin", side_effect=AdoptionUnknown(machine="x"))
    with failing:
        status = site.reverse()
    assert status.error is not None
    assert (status.state, status.error["code"]) == (ReverseState.FAILED, "adopt.unknown")
    require_ready(site, site.reverse())
