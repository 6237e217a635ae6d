"""What was set for a recovered machine: seen before, in effect after, and brought into its guest."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.fabrics.base import GuestRun, RecoverySpec
from secondsite.gateway.messages.testfailover import (
    InjectionState,
    InjectionStatus,
    StartTestFailover,
    TestFailoverStatus,
)
from secondsite.gateway.recovery.injecting import TAKE_SECONDS_MAX, Injector, NotStanding
from secondsite.gateway.recovery.testfailover import PrerequisitesFailed, plan_request
from secondsite.model import recovered
from secondsite.model.events import Severity
from secondsite.model.recovered import RecoveredSettings
from support.machines import SHOP
from support.recovery_site import Site

STATIC = {"nic": "1", "addressing": "static", "addresses": ["192.0.2.7/24"]}
SIZES = recovered.from_object({"cpus": 1, "memoryBytes": 512 << 20, "name": "shop-b"})


class _Clock(SystemClock):
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return self.passed


def _set(injection: str = "agent", **more: Any) -> RecoveredSettings:
    return recovered.from_object({"nics": [{**STATIC, **more}], "injection": injection})


def _start(site: Site, settings: RecoveredSettings, network: str = "mapped") -> TestFailoverStatus:
    request = StartTestFailover(point="latest", network=network, settings=settings)
    return site.finish(site.recovery.start_test_failover(SHOP, request))


def _spec(site: Site) -> RecoverySpec:
    [made] = site.fabric.recovered()
    return site.fabric.recovered_spec(made)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def injector(site: Site, clock: _Clock) -> Injector:
    return Injector(site.fabric, (site.recovery.test_guests,), clock, site.events)


def _injection(site: Site, status: TestFailoverStatus) -> InjectionStatus:
    found = site.recovery.test_failover(status.id).injection
    assert found is not None
    return found


def test_a_preview_shows_what_would_be_and_makes_nothing(site: Site) -> None:
    request = StartTestFailover(point="latest", network="isolated", settings=SIZES)
    plan = site.recovery.check_test_failover(SHOP, request)
    assert plan.outlook is not None
    assert (plan.name, plan.outlook.cpus, plan.outlook.memory_bytes) == ("shop-b-test", 1, 512 << 20)
    assert plan.settings == SIZES
    assert list(site.fabric.recovered()) == []


def test_settings_stand_in_a_query_too() -> None:
    asked = plan_request({"point": "latest", "network": "none", "settings": '{"cpus":2}'})
    assert asked.settings == RecoveredSettings(cpus=2)
    for bad in ('{"cpus":0}', "{", '{"cpu":1}'):
        with pytest.raises(Exception, match="what is set"):
            plan_request({"point": "latest", "network": "none", "settings": bad})


def test_a_test_machine_is_started_with_its_settings(site: Site) -> None:
    status = _start(site, SIZES)
    assert status.name == "shop-b-test"
    assert status.settings == SIZES
    assert status.injection is None
    spec = _spec(site)
    assert (spec.settings, spec.attach_as_set, spec.instance) == (SIZES, True, status.id)


def test_a_network_that_was_asked_for_wins_over_the_settings(site: Site) -> None:
    _start(site, _set(network="nowhere"), network="isolated")
    assert not _spec(site).attach_as_set


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"memoryBytes": 1 << 40}, "this host has 1 GiB"),
        ({"nics": [{"nic": "1", "network": "nowhere"}]}, "no network nowhere"),
        ({"nics": [{"nic": "5"}]}, "no adapter 5"),
        ({"nics": [STATIC], "injection": "agent"}, "192.0.2.7 is in use"),
    ],
)
def test_what_the_site_lacks_is_a_prerequisite(site: Site, value: dict[str, Any], why: str) -> None:
    site.fabric.addresses_in_use["192.0.2.7"] = "another"
    with pytest.raises(PrerequisitesFailed, match=why):
        _start(site, recovered.from_object(value))
    assert list(site.fabric.recovered()) == []


def test_the_agent_brings_the_addresses_in_once(site: Site, injector: Injector) -> None:
    status = _start(site, _set())
    assert _injection(site, status).state is InjectionState.WAITING
    for _ in range(4):
        injector.look()
    ended = _injection(site, status)
    assert (ended.state, ended.tries) == (InjectionState.APPLIED, 1)
    [made] = site.fabric.recovered()
    assert site.fabric.runs_of(made) == 1
    told = [event.code for event in site.events.all if event.code.startswith("recovered.")]
    assert told == ["recovered.settings-applied"]


def test_a_silent_agent_is_waited_for_and_given_up_in_words_while_the_machine_runs(
    site: Site, injector: Injector, clock: _Clock
) -> None:
    status = _start(site, _set())
    site.fabric.silent.add(status.name)
    injector.look()
    waiting = _injection(site, status)
    assert waiting.state is InjectionState.WAITING
    assert "does not answer" in waiting.detail
    clock.passed += TAKE_SECONDS_MAX + 1
    injector.look()
    assert _injection(site, status).state is InjectionState.FAILED
    event = site.events.all[-1]
    assert (event.code, event.severity) == ("recovered.settings-not-applied", Severity.WARNING)
    assert "runs, without the addresses" in event.text
    assert len(site.fabric.recovered()) == 1
    site.fabric.silent.clear()
    injector.again(status.id)
    for _ in range(2):
        injector.look()
    assert _injection(site, status).state is InjectionState.APPLIED


@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_that_ends_badly_or_for_nothing_is_told_with_its_output(
    site: Site, injector: Injector, deaf: bool
) -> None:
    site.fabric.guests_say = GuestRun(0 if deaf else 1, "problem:\n no adapter")
    site.fabric.deaf_to_settings = deaf
    status = _start(site, _set())
    for _ in range(3):
        injector.look()
    found = _injection(site, status)
    assert found.state is InjectionState.FAILED
    assert "problem: no adapter" in found.detail
    assert ("192.0.2.7" in found.detail) == deaf


@pytest.mark.parametrize("injection", ["cloud-init", "drive"])
def test_a_guest_that_reads_its_drive_is_looked_at(site: Site, injector: Injector, injection: str) -> None:
    status = _start(site, _set(injection))
    injector.look()
    assert _injection(site, status).state is InjectionState.APPLIED
    [made] = site.fabric.recovered()
    assert site.fabric.runs_of(made) == 0


def test_a_guest_nobody_can_look_into_has_its_drive_and_one_that_did_not_read_it_is_told(
    site: Site, injector: Injector, clock: _Clock
) -> None:
    status = _start(site, _set("drive"))
    site.fabric.silent.add(status.name)
    injector.look()
    clock.passed += TAKE_SECONDS_MAX + 1
    injector.look()
    assert _injection(site, status).state is InjectionState.OFFERED
    # asked for again, its agent runs what the drive has
    site.fabric.silent.clear()
    site.fabric.deaf_to_settings = True
    assert injector.again(status.id).by_agent
    injector.look()
    injector.look()
    assert _injection(site, status).state is InjectionState.FAILED
    [made] = site.fabric.recovered()
    assert site.fabric.runs_of(made) == 1


def test_what_has_nothing_to_take_or_is_gone_is_refused(site: Site, injector: Injector) -> None:
    status = _start(site, SIZES)
    with pytest.raises(NotStanding):
        injector.again(status.id)
    site.clean_up()
    status = _start(site, _set())
    site.clean_up()
    injector.look()
    with pytest.raises(NotStanding):
        injector.again(status.id)
