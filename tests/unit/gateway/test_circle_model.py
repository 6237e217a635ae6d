"""Three places that take a machine over from each other, reverse, fail back and retire, in any order.

The code that decides is the product's (`support.circle_twin`). Bugs are planted to see that the walk finds
them. `./run fencing` walks 10,000 times, and then every transition of the tables was taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest

from secondsite.base.crash import MARKS
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.failover.claim import give_back
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.run import FailoverRunner
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.reverse import service as reverse
from secondsite.journal.chain import Journal
from secondsite.model.failover import FailoverEvent, FailoverState, HeldEvent, HeldState, KeptEvent, KeptState
from support import circle_site
from support.circle_site import Site
from support.circle_twin import CircleTwin, circle_twin
from support.walking import all_pairs, transitions_taken

FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
WALKS = 10_000 if FULL else 25
STEPS = 40
# What walks of few seeds take at least, of all the transitions there are.
PAIRS_MIN = 20
# Rows that say what is harmless; who asks again, or finds a claim again, is answered before a table is asked.
_F, _FE, _H, _HE, _K, _KE = FailoverState, FailoverEvent, HeldState, HeldEvent, KeptState, KeptEvent
ANSWERED = {
    (str(state), str(event))
    for state, event in (
        (_F.CLAIMED, _FE.CLAIMED),
        (_F.COMPLETED, _FE.BOOTED),
        (_F.COMMITTING, _FE.COMMIT_ASKED),
        (_F.COMMITTED, _FE.COMMITTED),
        (_F.ROLLING_BACK, _FE.ROLL_BACK_ASKED),
        (_F.ROLLED_BACK, _FE.ROLLED_BACK),
        (_H.REPLACED, _HE.REPLACED),
        (_K.MIGRATED, _KE.MIGRATED),
        (_K.RETIRING, _KE.RETIRE_ASKED),
        (_K.RETIRED, _KE.RETIRE_ASKED),
        (_K.RETIRED, _KE.RETIRED),
    )
}
AREAS = ("failover.", "held.", "reverse.", "removal.", "kept.", "planned.", "cancel-stop.", "drop.")
OURS = sorted(mark for mark in MARKS if mark.startswith(AREAS))
# how often one is taken beside others: so that walks go round
OFTEN = {
    "protect": 4.0,
    "cycle": 5,
    "fail over": 4,
    "change point": 2,
    "keep it": 2,
    "reverse": 4,
    "look": 2,
    "keep": 3,
    "move": 5,
    "over in order": 3,
    "line": 0.7,
    "late": 0.7,
    "host": 0.5,
    "switch on": 0.5,
    "time": 0.7,
    "discard": 0.5,
    "complete": 0.15,
    "cancel timer": 0.5,
    "wish": 0.5,
    "trouble": 0.5,
    "machine lost": 0.25,
    "release": 0.8,
    "retire": 0.7,
}


def actions_of(twin: CircleTwin, site: Site) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {
        "line": lambda: line(twin, site),
        "late": lambda: twin.late(site),
        "host": lambda: twin.host_restarts(site),
        "switch on": lambda: site.fabric.switch_on(twin.machine),
        "time": lambda: twin.clock.advance(1800),
        "server restored": twin.server_restored,
        "trouble": lambda: twin.trouble(site),
        "machine lost": lambda: twin.machine_lost(site),
    }
    if not site.up:
        return {"start": lambda: twin.ask(site, site.start, by_server=False), **found}
    old = twin.chance.choice([None, "remove", "remove-with-disks"])
    found |= {
        "kill": lambda: setattr(site, "up", False),
        "wish": lambda: twin.wish(site),
        "keep": lambda: twin.keep(site),
    }
    sense = twin.chance.random() < 0.1  # what makes none is asked for as well
    if sense or site.fabric.runs(twin.machine):
        found |= {
            "protect": lambda: twin.protect(site),
            "move": lambda: move(twin, site, planned=False),
            "over in order": lambda: move(twin, site, planned=True),
            "there and back": lambda: there_and_back(twin, site),
            "site lost": lambda: site_lost(twin, site),
        }
    if sense or site.protects is not None:
        found |= {
            "cycle": lambda: twin.cycle(site),
            "look": lambda: twin.head(site),
            "stop": lambda: twin.stop(site),
            "cancel stop": lambda: twin.cancel_stop(site),
        }
    if sense or site.seen.points():
        planned = twin.chance.random() < 0.2
        found["fail over"] = lambda: twin.fail_over(site, old, planned=planned)  # type: ignore[arg-type]
    if sense or site.fencing.get(twin.machine) is not None:
        found |= {
            "reverse": lambda: twin.reverse(site),
            "take back": lambda: twin.take_back(site),
            "release": lambda: twin.release(site),
            "discard": lambda: twin.discard(site),
        }
    return found | _of_a_failover(twin, site)


def _of_a_failover(twin: CircleTwin, site: Site) -> dict[str, Callable[[], object]]:
    status = site.status()
    if status is None:
        return {}
    found: dict[str, Callable[[], object]] = {
        "keep it": lambda: twin.commit(site, status),
        "roll back": lambda: twin.roll_back(site, status),
    }
    if status.state is FailoverState.COMMITTED:
        found["retire"] = lambda: twin.retire(site, status)
        found["complete"] = lambda: twin.complete(site, status)
    else:
        found["change point"] = lambda: twin.change_point(site, status)
        found["cancel timer"] = lambda: twin.cancel_timer(site, status)
    return found


def line(twin: CircleTwin, site: Site) -> None:
    """One to the site is cut, or all are there again."""
    if twin.cut and twin.chance.random() < 0.7:
        twin.cut.clear()
    else:
        twin.cut.add(frozenset({site.name, twin.chance.choice(twin.others(site)).name}))


def move(twin: CircleTwin, site: Site, *, planned: bool) -> None:
    """What a move takes, one after the other, as far as it goes, or somebody goes on with it."""
    twin.protect(site)
    other = site.target or twin.chance.choice(twin.others(site))
    old = twin.chance.choice(["remove", "remove-with-disks"])
    steps: list[tuple[Site, Callable[[], object]]] = [(site, lambda: twin.cycle(site))] * 3
    if planned:
        steps.append((site, lambda: twin.stop(site)))
    steps += [
        (other, lambda: twin.fail_over(other, old, planned=planned)),  # type: ignore[arg-type]
        (other, lambda: _commit(twin, other)),
        (site, lambda: twin.head(site)),
        (site, lambda: twin.keep(site)),
        (site, lambda: (twin.reverse if twin.chance.random() < 0.8 else twin.discard)(site)),
    ]
    _go(twin, steps)


def _go(twin: CircleTwin, steps: Sequence[tuple[Site, Callable[[], object]]]) -> None:
    for who, step in steps:
        if who.up:
            step()
            twin.check()
        if twin.chance.random() < 0.06:
            return


def there_and_back(twin: CircleTwin, site: Site) -> None:
    """Taken over and rolled back; the source hears of it or not, and a person may be quick."""
    other = site.target
    if other is None:
        return
    steps: list[tuple[Site, Callable[[], object]]] = [
        (site, lambda: twin.cycle(site)),
        (other, lambda: twin.fail_over(other, None)),
        (site, lambda: twin.head(site)),
        (site, lambda: twin.discard(site)),
        (other, lambda: _roll_back(twin, other)),
        (site, lambda: twin.head(site)),
    ]
    _go(twin, [step for step in steps if step[0] is other or twin.chance.random() < 0.5])


def site_lost(twin: CircleTwin, site: Site) -> None:
    """With its machine; it is built anew from what is durable, and the machine moves home."""
    other = site.target
    if other is None or not other.up:
        return
    twin.cycle(site)
    site.up = False
    steps: list[tuple[Site, Callable[[], object]]] = [
        (other, lambda: twin.fail_over(other, "remove")),
        (other, lambda: twin.machine_lost(site)),
        (other, lambda: _commit(twin, other)),
        (other, lambda: twin.ask(site, site.start, by_server=False)),
        (other, lambda: twin.protect(other)),
        *[(other, lambda: twin.cycle(other))] * 3,
        (site, lambda: twin.fail_over(site, None)),
    ]
    _go(twin, steps)


def _roll_back(twin: CircleTwin, site: Site) -> None:
    status = site.status()
    if status is not None:
        twin.roll_back(site, status)


def _commit(twin: CircleTwin, site: Site) -> None:
    status = site.status()
    if status is not None:
        twin.commit(site, status)


def walk(seed: int) -> tuple[set[str], int]:
    """One history; raises AssertionError where it went wrong. Returns what happened, and how many claims."""
    done: list[str] = []
    with circle_twin(seed) as twin:
        for _ in range(STEPS):
            site = twin.chance.choice(list(twin.sites.values()))
            actions = actions_of(twin, site)
            names = sorted(actions)
            [name] = twin.chance.choices(names, [OFTEN.get(each, 1.0) for each in names])
            twin.deaths.at = twin.chance.choice(OURS) if twin.chance.random() < 0.2 else ""
            twin.hurried = twin.chance.random() < 0.9
            dies = f" (to die at {twin.deaths.at})" if twin.deaths.at else ""
            done.append(f"{name} {site.name[-1]}{dies}{'' if twin.hurried else ' (slow)'}")
            try:
                actions[name]()
                twin.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, after {done}: {error}") from error
        twin.deaths.at = ""
        reached = {name.split(" (")[0] for name in done}
        reached |= {
            f"held {held.state.value}"
            for site in twin.sites.values()
            if site.up
            for held in site.fencing.all()
        }
        return reached, len(twin.claims)


def test_one_authority_and_growing_epochs_in_any_order_of_going_to_and_fro() -> None:
    seen: set[str] = set()
    most = 0
    with transitions_taken() as taken:
        for seed in range(WALKS):
            reached, claims = walk(seed)
            seen |= reached
            most = max(most, claims)
    assert {"held Reversed", "held Replaced"} <= seen, "walks fail over, reverse and fail back"
    assert most >= 6, "and go on after that"
    never = sorted(all_pairs() - taken - ANSWERED)
    print(f"{WALKS} walks took {len(taken)} of {len(all_pairs() - ANSWERED)} transitions")
    assert not taken & ANSWERED, "they are asked after all"
    assert len(taken) >= PAIRS_MIN
    assert not FULL or never == [], f"no walk took {never}"


def first_claims_begin_with_one(self: Journal, *, above: int = 0, **rest: Any) -> Any:
    return _CLAIM(self, **rest)


def what_took_its_place_is_kept_off(self: Fencing, machine: Any, *, disks: bool) -> None:
    before = self._records.get(machine)
    _ROOM(self, machine, disks=disks)
    if before is not None:
        self._records.save(before)


def committed_or_not(_held: Any, _theirs: Any) -> Check:
    return Check(name="committed", passed=True)


def claims_back_before_the_machine_is_gone(runner: FailoverRunner, identity: str) -> None:
    status = runner._records.get(identity).status
    give_back(
        runner._hands.journal(status.machine),
        to=status.writer,
        operation=identity,
        name=status.machine_name,
        clock=runner._hands.clock,
    )
    failoverrun.crash_point(failoverrun.ROLL_BACK_CLAIMED)  # type: ignore[attr-defined]
    _ROLL_BACK(runner, identity)


def boots_before_the_claim(runner: FailoverRunner, identity: str) -> None:
    record = runner._records.get(identity)
    point = runner._hands.choose(record.status.machine, record.wanted)
    export = runner._export(record, point)
    if not runner.found(record):
        runner._start(record, runner._spec(record, point, export))
    _TAKE_OVER(runner, identity)


def a_claim_of_long_ago_holds(_journal: Journal, _us: str) -> int:
    return 0


def forgets_to_isolate(_self: Fencing, _held: Any) -> None:
    """The record says held, the machine runs."""


_CLAIM, _ROOM = Journal.claim, Fencing.make_room
_TAKE_OVER, _ROLL_BACK = FailoverRunner.take_over, FailoverRunner.roll_back
BUGS = [
    (Journal, "claim", first_claims_begin_with_one),
    (Fencing, "make_room", what_took_its_place_is_kept_off),
    (reverse, "about_theirs", committed_or_not),
    (FailoverRunner, "roll_back", claims_back_before_the_machine_is_gone),
    (FailoverRunner, "take_over", boots_before_the_claim),
    (circle_site, "taken_here", a_claim_of_long_ago_holds),
    (Fencing, "_isolate", forgets_to_isolate),
]
# How many walks find each of them for sure; the first two are looked for in every run as well.
SEEDS = 1000
PICKED = BUGS if FULL else BUGS[:2]


@pytest.mark.parametrize(("where", "name", "wrong"), PICKED, ids=[wrong.__name__ for *_, wrong in PICKED])
def test_the_walk_finds_planted_bugs(where: Any, name: str, wrong: Any) -> None:
    with mock.patch.object(where, name, wrong), pytest.raises(AssertionError, match=r"seed \d+, after"):
        _walk_all()


def _walk_all() -> None:
    for seed in range(SEEDS):
        walk(seed)
