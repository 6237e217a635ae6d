"""Active, standby, takeover, return, and back in order: two servers and two gateways over real TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.gateway.common.incarnation import incarnations
from secondsite.server.jobs.states import JobState
from secondsite.server.standby.errors import ActiveLives, ConfirmTakeover
from secondsite.server.survival.handover import HandOverState
from secondsite.server.survival.life import ServerSuperseded
from secondsite.transfer.serverclaims import newest_claims
from support.server import owner, tls_caller, trusting
from support.standbys import SECONDS_MAX, Site, two_sites
from support.until import until


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with two_sites(tmp_path) as made:
        yield made


def _no_note(*_: object) -> None:
    pass


def test_takeover_return_and_switch_back(sites: tuple[Site, Site]) -> None:
    a, b = sites
    # nobody follows yet: no copy is made by itself; the first one is as good as a backup
    assert not a.copies.look()
    a.copies.make()
    follower = b.follower()
    assert not follower.look().problem
    until(lambda: bool(follower.look().current_at), "the standby is current", SECONDS_MAX)
    # from now on it follows what changes, and only that
    a.add_vault("South")
    cut_off = a.begin_job()
    until(lambda: a.state_of(cut_off) is JobState.IN_PROGRESS, "it is under way", SECONDS_MAX)
    until(lambda: _holds_all(a, b), "the second vault is at the standby", SECONDS_MAX)
    for site in sites:  # gateways learn where the standby is
        site.beats_until(lambda site=site: b.url in site.urls)  # type: ignore[misc]
    with pytest.raises(ActiveLives):
        b.take_over()
    a.stop()
    with pytest.raises(ConfirmTakeover):
        b.take_over(confirm="")
    assert not list(newest_claims(b.store))
    done = b.take_over()
    b.start()
    assert b.survival.life.number == done.claim.incarnation
    assert b.vaults() == ["North", "South"]
    assert b.state_of(cut_off) is JobState.FAILED  # for a person: what it did after is not known
    for site in sites:
        site.beats_until(lambda site=site: site.gateway_server == b.url)  # type: ignore[misc]
        assert incarnations(site.enrolment).number == done.claim.incarnation
    # the one that was thought lost comes back, is told, and does nothing more
    a.start()
    until(lambda: a.survival.life.superseded, "it learns that another took over", SECONDS_MAX)
    _only_looked_at(a)
    a.become_standby()
    back = a.follower()
    b.add_vault("East")
    until(lambda: _holds_all(b, a), "it follows the other one", SECONDS_MAX)
    # and back, in order: its jobs go on
    goes_on = b.begin_job()
    handover = b.survival.handover
    assert handover is not None
    handover.begin(lambda *_: None)
    b.beats_until(lambda: handover.status().state is HandOverState.HANDED_OVER)
    until(lambda: not back.look().problem and a.holds_last, "the last state", SECONDS_MAX)
    a.take_over(confirm="")
    a.start()
    assert a.vaults() == ["East", "North", "South"]
    a.may_end.set()
    until(lambda: a.state_of(goes_on) is JobState.SUCCEEDED, "the job went on", SECONDS_MAX)
    for site in sites:
        site.beats_until(lambda site=site: site.gateway_server == a.url)  # type: ignore[misc]
    until(lambda: b.survival.life.superseded, "the other one is fenced", SECONDS_MAX)


def _only_looked_at(site: Site) -> None:
    """A server whose place another took shows what it knows, and changes nothing."""
    with pytest.raises(ServerSuperseded):
        site.survival.life.check_work()
    context = trusting(site.config.state_dir / "authority.crt")
    call = tls_caller("127.0.0.1", site.port, context, owner(site.services))
    assert call("GET", "/api/v1/vaults").status == 200
    refused = call("POST", "/api/v1/vaults", {"friendlyName": "West"})
    assert (refused.status, refused.code) == (409, "server.superseded")
    assert call("GET", "/api/v1/ready").status == 409
    with site.services.database.read() as connection:
        codes = connection.exec_driver_sql("SELECT code FROM events").scalars().all()
    assert "server.superseded" in codes


def _holds_all(active: Site, standby: Site) -> bool:
    for site in (active, standby):  # who is not heard of is not asked to keep a copy
        site.keeper().look()
    standby.follower().look()
    return standby.held_vaults == len(active.vaults())
