"""A machine that was taken over is compared with what was asked for, by its hypervisor, before a commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from secondsite.base.units import GIB, MIB
from secondsite.fabrics.base import LiveNic, Recovered, Shape
from secondsite.gateway.failover import verified
from secondsite.gateway.failover.guests import VERIFY_SECONDS
from secondsite.gateway.messages.failover import CommitFailover, FailoverStatus, StartFailover
from secondsite.gateway.messages.failovererrors import NotRunning
from secondsite.model import confirmations
from secondsite.model.confirmations import ConfirmationMissing
from secondsite.model.failover import FailoverState
from secondsite.model.machines import PowerState
from secondsite.model.outlook import NicOutlook, Outlook
from secondsite.model.recovered import NEW, RecoveredSettings
from support.failover_twin import NAME, A, Twin

OPERATION = "ab" * 16
MAC = "52:54:00:00:00:01"
ASKED = Outlook(
    name="shop",
    cpus=2,
    memory_bytes=GIB,
    firmware="bios",
    machine_type="pc",
    nics=(
        NicOutlook(place=1, mac=MAC, network="front"),
        NicOutlook(place=2, mac=NEW, network=""),
    ),
)
FRONT = LiveNic(mac=MAC, network="front", up=True)
NOWHERE = LiveNic(mac="52:54:00:00:00:02", network="", up=False)
SHAPE = Shape(cpus=2, memory_bytes=GIB, nics=(FRONT, NOWHERE))


@pytest.mark.parametrize(
    ("shape", "differs"),
    [
        (SHAPE, {}),
        (Shape(2, GIB + MIB - 1024, (FRONT, NOWHERE)), {}),  # rounded up by the hypervisor
        (Shape(2, GIB + MIB, (FRONT, NOWHERE)), {"memory": "1025 MiB"}),
        (
            Shape(2, GIB - 1024, (FRONT, NOWHERE)),
            {"memory": "it has 1023 MiB of memory, and 1024 MiB were asked for"},
        ),
        (Shape(1, GIB, (FRONT, NOWHERE)), {"processors": "it has 1 processors, and 2 were asked for"}),
        (
            Shape(2, GIB, (LiveNic(MAC, "back", up=True), NOWHERE)),
            {"networks": "adapter 1 is attached to back, and front was asked for"},
        ),
        (Shape(2, GIB, (LiveNic(MAC, "front", up=False), NOWHERE)), {"networks": "its link is down"}),
        (
            Shape(2, GIB, (FRONT, LiveNic(NOWHERE.mac, "front", up=True))),
            {"networks": "adapter 2 is attached to front, and none was asked for"},
        ),
        (
            Shape(2, GIB, (LiveNic("52:54:00:00:00:09", "front", up=True), NOWHERE)),
            {"adapters": f"adapter 1 has the address 52:54:00:00:00:09 instead of {MAC}"},
        ),
        (Shape(2, GIB, (FRONT,)), {"adapters": "it has 1 adapters, and 2 were asked for"}),
    ],
)
def test_what_differs_is_named_with_its_cause(shape: Shape, differs: dict[str, str]) -> None:
    found = verified.verify(ASKED, shape, PowerState.RUNNING)
    assert {check.name for check in found} == {"running", "processors", "memory", "adapters", "networks"}
    failed = {check.name: check for check in found if not check.passed}
    assert set(failed) == set(differs)
    for name, cause in differs.items():
        assert cause in failed[name].cause
        assert failed[name].action
        assert not failed[name].required, "a person may have made it another on purpose"


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    made = Twin(tmp_path)
    made.commit_as_a()
    return made


def _start(twin: Twin, settings: RecoveredSettings | None = None) -> None:
    request = StartFailover(
        operation=OPERATION,
        point="latest",
        confirm=confirmations.taken_over(NAME, A),
        settings=settings,
    )
    twin._ask(lambda b: b.start(twin.machine, request))


def _look(twin: Twin) -> FailoverStatus:
    """Once the next look is due."""
    twin.clock.advance(VERIFY_SECONDS)
    assert twin.b is not None
    twin.b.resume_guests()
    found = twin.status()
    assert found is not None
    return found


def test_it_is_looked_at_by_itself_and_a_difference_told_once(twin: Twin) -> None:
    _start(twin)
    status = _look(twin)
    assert status.verified
    assert all(check.passed for check in status.verified)
    serial = status.serial
    assert _look(twin).serial == serial, "nothing is written where nothing changed"
    twin.b_fabric.shapes[twin.machine] = Shape(4, GIB, _nics(twin))
    for _ in range(3):
        status = _look(twin)
    assert [check.name for check in status.verified if not check.passed] == ["processors"]
    assert twin.events.codes().count("failover.differs") == 1
    twin.b_fabric.shapes.clear()
    assert all(check.passed for check in _look(twin).verified)


def test_on_another_point_nothing_is_known_of_it_until_it_is_looked_at(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.commit_as_a()
    _start(twin)
    first = twin.status()
    assert first is not None
    twin.b_fabric.shapes[twin.machine] = Shape(4, GIB, _nics(twin))
    assert _look(twin).differs
    twin.change_point(OPERATION, str(first.point - 1))
    status = twin.status()
    assert status is not None
    assert (status.state, status.point) == (FailoverState.COMPLETED, first.point - 1)
    assert (status.differs, status.verified, status.verified_at) == ("", (), None), "of the former machine"
    assert _look(twin).differs
    assert twin.events.codes().count("failover.differs") == 2, "of each machine"

    shape_of = type(twin.b_fabric).shape_of

    def meanwhile(fabric: object, recovered: Recovered) -> Shape | None:
        found = shape_of(fabric, recovered)  # type: ignore[arg-type]
        monkeypatch.setattr(type(twin.b_fabric), "shape_of", shape_of)
        twin.change_point(OPERATION, str(first.point))
        return found

    twin.b_fabric.shapes[twin.machine] = Shape(3, GIB, _nics(twin))
    monkeypatch.setattr(type(twin.b_fabric), "shape_of", meanwhile)
    status = _look(twin)
    assert (status.point, status.verified) == (first.point, ()), "what was looked at is gone"


def test_before_a_commit_it_is_looked_at_anew_and_told(twin: Twin) -> None:
    _start(twin)
    assert twin.b is not None
    twin.b_fabric.shapes[twin.machine] = Shape(1, GIB // 2, _nics(twin))
    with pytest.raises(ConfirmationMissing) as missing:
        twin.b.commit(OPERATION, CommitFailover())
    assert "It is not what was asked for: memory: it has 512 MiB" in " ".join(missing.value.sentences())
    twin.b_fabric.switch_off_recovered(twin.machine)
    with pytest.raises(NotRunning, match=r"does not run \(off\)"):
        twin.b.commit(OPERATION, CommitFailover())
    [recovered] = twin.b_fabric.recovered()
    twin.b_fabric.run_recovered(recovered)
    twin.commit(OPERATION)
    status = twin.status()
    assert status is not None
    assert status.state is FailoverState.COMMITTED
    assert [check.name for check in status.verified if not check.passed] == ["memory"], "what was accepted"


def test_what_a_person_set_is_asked_for_whatever_we_made_of_it(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of ours that forgets a setting forgets it in what it shows, too."""
    forgetful = type(twin.b_fabric).outlook

    def outlook(fabric: object, spec: object) -> Outlook:
        return structs.replace(forgetful(fabric, spec), cpus=1)  # type: ignore[arg-type]

    monkeypatch.setattr(type(twin.b_fabric), "outlook", outlook)
    _start(twin, RecoveredSettings(cpus=2))
    causes = [check.cause for check in _look(twin).verified if not check.passed]
    assert causes == ["it has 1 processors, and 2 were asked for"]


def _nics(twin: Twin) -> tuple[LiveNic, ...]:
    [recovered] = twin.b_fabric.recovered()
    twin.b_fabric.shapes.clear()
    shape = twin.b_fabric.shape_of(recovered)
    assert shape is not None
    return tuple(shape.nics)
