"""Protection in the other direction: looked at, turned round once, taken back before its first point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from secondsite.model import confirmations, reversals
from secondsite.model.items import ProtectedState, allowed_operations
from secondsite.model.policies import ReplicationPolicy
from secondsite.model.recovered import Direction as Way
from secondsite.server.items.recovered import way_of
from secondsite.server.items.turning import Direction, direction_of
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failback import FAILBACK, Failback, sentences
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, Commit
from secondsite.server.operations.migration import COMPLETE, CompleteMigration
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from support.items import FakeGateway, ItemPlace, a_machine, output

SHOP = a_machine()
S = ProtectedState


@pytest.fixture
def away(place: ItemPlace) -> ItemPlace:
    """The machine runs at gateway-b by a committed failover, and is held at gateway-a."""
    return moved(place)


def moved(place: ItemPlace, policy: str | None = None) -> ItemPlace:
    protected = place.run(place.protect(SHOP.id, policy=policy))
    assert protected.state is JobState.SUCCEEDED
    take_over(place, "gateway-a", "gateway-b")
    return place


def take_over(place: ItemPlace, source: str, target: str) -> None:
    """Failed over from one to the other, and committed; what fabric and fencing do is done by hand."""
    gateways = place.gateways
    gateways[target].failovers.writer = source
    said = confirmations.taken_over("shop", source)
    job = place.run(place.worker.start(FAILOVER, Failover(**given(place), confirm=said)))
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    gateways[source].returns.held[SHOP.id] = "Held"
    job = place.run(place.worker.start(COMMIT, Commit(**given(place), confirm=confirmations.kept("shop"))))
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    gateways[target].replicas.pop(SHOP.id, None)  # its points go with a commit
    gateways[target].returns.held.pop(SHOP.id, None)
    place.site(target, SHOP)
    place.round()


def given(place: ItemPlace) -> dict[str, Any]:
    item = place.item(SHOP.id)
    return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop", "by": "ann"}


def start(place: ItemPlace, **more: Any) -> str:
    said = {"confirm": reversals.reversed_onto("shop"), **more}
    return place.worker.start(REPROTECT, Reprotect(**given(place), **said))


def code(job: records.Job) -> str:
    assert job.error is not None, job
    return job.error.code


def steer(place: ItemPlace, what: str, job: str) -> None:
    with place.database.write() as connection:
        getattr(place.worker.jobs, what)(connection, job, "ann")


def doing(place: ItemPlace, step: str) -> Callable[[records.Job], bool]:
    return lambda job: any(
        one.name == step and one.state.value == "InProgress" for one in place.worker.steps(job.id)
    )


def ends(place: ItemPlace) -> tuple[str, str, str]:
    item = place.item(SHOP.id)
    return item.source_name, item.target_name, item.state.value


def test_the_whole_circle(each_place: ItemPlace) -> None:
    """There, back, and there again, each time onto the old disks; the first policy counts again at home."""
    place = each_place
    gold = place.parts.policies.create(
        place.vault, "Gold", ReplicationPolicy(copy_frequency_seconds=30), by="ann"
    )
    moved(place, gold.id)
    a, b = place.gateways["gateway-a"], place.gateways["gateway-b"]
    epoch = b.failovers.epoch
    for source, target, policy, way in (
        (b, a, gold.failback, Direction.BACK),
        (a, b, gold.id, Direction.FORTH),
    ):
        done = place.run(start(place))
        assert (done.state, done.error) == (JobState.SUCCEEDED, None)
        said = output(done)
        assert (said["reversed_onto"], said["sent_bytes"]) == (True, 4096)
        item = place.item(SHOP.id)
        assert ends(place) == (source.who.name, target.who.name, "Protected")
        assert (item.policy_id, direction_of(item)) == (policy, way)
        assert target.returns.held[SHOP.id] == "Reversed"
        assert SHOP.id not in target.protections, "its own protection there has ended"
        assert source.protections[SHOP.id].wanted.peer == target.who.name
        [*_, last] = source.failovers.known.values()
        assert last["kept"] == "Retired", "what is left of its replica there is gone"
        for _ in range(3):
            place.round()
        assert place.item(SHOP.id).state is S.PROTECTED, "an older failover leads it nowhere"
        assert place.item(SHOP.id).health_code == ""
        if way is Direction.BACK:
            target.failovers.epoch = epoch = epoch + 2
            take_over(place, "gateway-b", "gateway-a")
    assert place.item(SHOP.id).home == ""
    assert "item.reprotected" in place.codes()


def test_what_is_in_the_way_is_told_and_nothing_is_begun(away: ItemPlace) -> None:
    a, b = away.gateways["gateway-a"], away.gateways["gateway-b"]

    def tried(expected: str, *, after: float = 0.0) -> None:
        """after: seconds that pass once it waits for something."""
        begun = start(away)
        if after:
            away.run(begun, until=lambda job: "it is asked again" in (job.note or ""))
            away.clock.advance(after)
        job = away.run(begun)
        assert (job.state, code(job)) == (JobState.FAILED, expected)
        assert ends(away) == ("gateway-a", "gateway-b", "CommitFailoverCompleted")
        assert a.returns.begun == []

    a.reached = False
    tried("item.no-way-back")
    a.reached, b.proved = True, False
    tried("item.recovery-key-unproved")
    b.proved, a.store = True, False
    tried("gateway.role-missing")
    a.store = True
    cause = {"cause": "the old shop has a snapshot in vda", "action": "Merge it."}
    a.returns.checks = [{"name": "disks", "passed": False, "required": True, **cause}]
    tried("item.return-prerequisites")
    a.returns.checks = []
    away.site("gateway-a", SHOP, pools=("other",))
    tried("item.return-prerequisites")
    away.site("gateway-a", SHOP)
    away.site("gateway-b")
    tried("item.recovery-machine-gone", after=1000.0)
    away.site("gateway-b", SHOP)
    a.returns.held.clear()
    tried("item.not-held-yet", after=1000.0)
    a.returns.held[SHOP.id] = "Held"
    [over] = b.failovers.known.values()
    over["kept"] = "MigrationCompleted"
    tried("item.migrated")
    a.here = False
    away.clock.advance(600.0)
    tried("item.gateway-not-connected")


def test_a_machine_that_is_not_told_of_yet_is_waited_for(away: ItemPlace) -> None:
    """The field's quarter of an hour after a boot elsewhere: said, and tried again."""
    away.site("gateway-b")
    job = start(away)
    seen = away.run(job, until=lambda found: "does not tell of shop yet" in (found.note or ""))
    assert seen.live
    away.site("gateway-b", SHOP)
    assert away.run(job).state is JobState.SUCCEEDED


def with_third(place: ItemPlace) -> FakeGateway:
    key, _ = place.identity.keys.create("North", url="https://server.example", by="maria")
    place.enrol("gateway-c", key)
    place.gateways["gateway-c"].turn()
    return place.gateways["gateway-c"]


def test_what_is_in_the_way_of_a_third_place_is_told_as_well(away: ItemPlace) -> None:
    c = with_third(away)
    plain = '{"networks":{},"pools":{},"defaultPool":"default"}'

    def tried(expected: str, mapping: str = plain) -> str:
        job = away.run(start(away, target="gateway-c", mapping=mapping))
        assert (job.state, code(job)) == (JobState.FAILED, expected)
        assert ends(away) == ("gateway-a", "gateway-b", "CommitFailoverCompleted")
        assert job.error is not None
        return f"{job.error.happened} {job.error.cause} {job.error.action}"

    assert "gateway-c" in tried("item.site-unread")
    away.site("gateway-c", pools=("other",))
    assert "no active pool default at gateway-c" in tried("item.return-prerequisites")
    away.site("gateway-c")
    said = tried("item.return-prerequisites", '{"networks":{"lan":"nowhere"},"pools":{},"defaultPool":null}')
    assert "no network nowhere at gateway-c" in said
    assert "has no place at gateway-c" in said
    c.reached = False
    tried("item.no-way-back")
    c.reached, c.store = True, False
    tried("gateway.role-missing")
    c.store = True
    job = away.run(start(away, target="gateway-b"))
    assert code(job) == "item.return-to-itself"
    assert away.run(start(away, target="gateway-c", mapping=plain)).state is JobState.SUCCEEDED


def test_the_place_it_went_on_to_is_its_home(place: ItemPlace) -> None:
    """Its first policy, its first target and the settings of that direction count there again."""
    gold = place.parts.policies.create(
        place.vault, "Gold", ReplicationPolicy(copy_frequency_seconds=30), by="ann"
    )
    moved(place, gold.id)
    b, c = place.gateways["gateway-b"], with_third(place)
    place.site("gateway-c")
    plain = '{"networks":{},"pools":{},"defaultPool":"default"}'
    assert place.run(start(place, target="gateway-c", mapping=plain)).state is JobState.SUCCEEDED
    item = place.item(SHOP.id)
    assert (item.policy_id, direction_of(item), way_of(item)) == (
        gold.failback,
        Direction.BACK,
        Way.REVERSE,
    )
    c.failovers.epoch = b.failovers.epoch + 2
    take_over(place, "gateway-b", "gateway-c")
    done = place.run(start(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done)["reversed_onto"] is True
    assert ends(place) == ("gateway-c", "gateway-b", "Protected")
    item = place.item(SHOP.id)
    assert (item.policy_id, direction_of(item), way_of(item)) == (gold.id, Direction.FORTH, Way.FORWARD)
    assert item.home == ""


@pytest.mark.parametrize("where", ["gone", "elsewhere"])
def test_without_the_old_disks_it_is_a_plain_first_copy(place: ItemPlace, where: str) -> None:
    if where == "elsewhere":
        with_third(place)
        place.site("gateway-c")
    moved(place)
    target = "gateway-c" if where == "elsewhere" else "gateway-a"
    more: dict[str, Any] = {"mapping": '{"networks":{},"pools":{},"defaultPool":"default"}'}
    if where == "elsewhere":
        more["target"] = "gateway-c"
    else:
        place.gateways["gateway-a"].returns.gone = True
        place.site("gateway-a")
    done = place.run(start(place, **more))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done)["reversed_onto"] is False
    assert ends(place) == ("gateway-b", target, "Protected")
    assert place.gateways["gateway-a"].returns.begun == []
    assert place.gateways[target].replicas[SHOP.id].points > 0


@pytest.mark.parametrize("step", ["reverse", "first-point"])
def test_called_off_before_its_first_point_the_old_machine_is_held_as_before(
    away: ItemPlace, step: str
) -> None:
    a, b = away.gateways["gateway-a"], away.gateways["gateway-b"]
    before = away.item(SHOP.id)
    job = start(away)
    away.run(job, until=doing(away, step) if step != "reverse" else lambda _job: bool(a.returns.begun))
    steer(away, "cancel", job)
    assert away.run(job).state is JobState.CANCELLED
    after = away.item(SHOP.id)
    assert ends(away) == ("gateway-a", "gateway-b", "CommitFailoverCompleted")
    for name in ("policy_text", "mapping_text", "own_mapping", "home", "enabled", "source_done"):
        assert getattr(after, name) == getattr(before, name), name
    assert a.returns.held[SHOP.id] == "Held"
    assert len(a.returns.taken_back) == 1
    assert SHOP.id not in b.protections
    # and it can be begun anew, under another number
    assert away.run(start(away)).state is JobState.SUCCEEDED
    assert len(set(a.returns.begun)) == 2


def test_called_off_after_its_first_point_it_stays_protected(away: ItemPlace) -> None:
    away.gateways["gateway-b"].failovers.needed = 1000  # it is not to be retired yet
    job = start(away)
    away.run(job, until=doing(away, "retire-replica"))
    steer(away, "cancel", job)
    assert away.run(job).state is JobState.CANCELLED
    assert ends(away) == ("gateway-b", "gateway-a", "Protected")
    assert "that is not taken back" in " ".join(away.worker.log(job))


def test_what_fails_at_the_old_site_is_taken_back_and_tried_again(away: ItemPlace) -> None:
    away.gateways["gateway-a"].returns.fails = 1
    job = away.run(start(away))
    assert (job.state, code(job)) == (JobState.FAILED, "store.full")
    assert ends(away)[2] == "CommitFailoverCompleted"
    assert away.gateways["gateway-a"].returns.held[SHOP.id] == "Held"
    steer(away, "retry", job.id)
    assert away.run(job.id).state is JobState.SUCCEEDED


def test_a_refusal_after_the_turn_waits_for_a_retry(away: ItemPlace) -> None:
    b = away.gateways["gateway-b"]
    job = start(away)
    away.run(job, until=doing(away, "first-point"))

    def refused(gateway: FakeGateway) -> None:
        gateway.refused[away.item(SHOP.id).id] = "its tracking is lost"

    refused(b)
    failed = away.run(job)
    assert (failed.state, code(failed)) == (JobState.FAILED, "item.gateway-refused")
    assert ends(away) == ("gateway-b", "gateway-a", "ReprotectFailed")
    assert away.item(SHOP.id).health == "Critical"
    b.refused.clear()
    away.round()
    steer(away, "retry", job)
    assert away.run(job).state is JobState.SUCCEEDED
    assert ends(away)[2] == "Protected"
    assert away.item(SHOP.id).health == "Normal"


def test_another_worker_turns_it_round_once(each_place: ItemPlace) -> None:
    """The worker dies after each step; requests that were asked stay the same ones."""
    place = moved(each_place)
    job = start(place)
    for _ in range(300):
        if not place.worker.get(job).live:
            break
        place.round()
        if place.worker.claims.take(1, place.worker.stop):
            place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert ends(place) == ("gateway-b", "gateway-a", "Protected")
    assert len(place.gateways["gateway-a"].returns.begun) == 1


@pytest.mark.parametrize("remove", ["nothing", "machine-and-disks"])
def test_failed_back_committed_and_protected_as_at_first(away: ItemPlace, remove: str) -> None:
    """One job: moved in order, kept there, protected again: onto the disks it left, or after their end."""
    a, b = away.gateways["gateway-a"], away.gateways["gateway-b"]
    assert away.run(start(away)).state is JobState.SUCCEEDED
    a.failovers.writer = "gateway-b"
    a.failovers.epoch = b.failovers.epoch + 2
    asked = Failback(
        **given(away),
        source="gateway-b",
        target="gateway-a",
        old_machine="remove",
        commit=True,
        recovery=remove,
        reprotect=True,
    )
    a.failovers.commits_badly = 1
    job = away.worker.start(FAILBACK, asked)
    away.run(job)
    failed = away.worker.get(job)
    assert (failed.state, code(failed)) == (JobState.FAILED, "fabric.no-room")
    assert ends(away) == ("gateway-b", "gateway-a", "CommitFailoverFailedOnRecovery")
    [over] = a.failovers.known.values()
    assert over["kind"] == "Planned"
    steer(away, "retry", job)
    away.run(job, until=lambda _job: ends(away)[2] == "CommitFailoverCompleted")
    # what the fencing and the fabric of the two sites do
    a.replicas.pop(SHOP.id, None)
    a.returns.held.pop(SHOP.id)
    away.site("gateway-a", SHOP)
    b.returns.held[SHOP.id] = "Held"
    b.holds.hold(SHOP.id, "gateway-a", epoch=over["epoch"])
    if remove != "nothing":
        b.returns.gone = True
    done = away.run(job)
    assert done.error is None, done.error
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert ends(away) == ("gateway-a", "gateway-b", "Protected")
    assert away.item(SHOP.id).home == ""
    with away.database.read() as connection:
        kinds = [one.kind for one in records.listed(connection, parent=job)][::-1]
    parts = ["item.planned-failover", "item.commit"]
    parts += ["item.held-discard"] * (remove != "nothing") + ["item.reprotect"]
    assert kinds == parts
    assert len(sentences(asked)) == 3


def test_a_completed_migration_leads_nowhere_back(away: ItemPlace) -> None:
    done = away.run(away.worker.start(COMPLETE, CompleteMigration(**given(away))))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    item = away.item(SHOP.id)
    assert item.state is S.MIGRATED
    assert {one.value for one in allowed_operations(item.state, item.facts)} == {
        "disable",
        "disableWithReplica",
    }
    for _ in range(3):
        away.round()
    assert away.item(SHOP.id).state is S.MIGRATED
    assert away.item(SHOP.id).health == "Normal"
