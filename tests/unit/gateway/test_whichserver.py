"""What a gateway takes from claims and addresses: only what its server's authority has signed, or said."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.incarnation import incarnations
from secondsite.gateway.uplink import whichserver
from secondsite.gateway.uplink.whichserver import WhichServer, known_servers
from secondsite.journal.store_local import LocalStore
from secondsite.server.identity.authority import signature_by
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.takeover import SENTENCE, Order, take_over
from secondsite.transfer.certificates import new_signer
from secondsite.transfer.incarnation import incarnation_message, shown
from secondsite.transfer.serverclaims import ServerClaim, encoded, newest_claims
from support.control import Events
from support.lonely import CLOCK, config_of
from support.standby_twin import template


def _forged(claim: ServerClaim) -> ServerClaim:
    """The same, higher, by an authority of somebody's own."""
    signer = new_signer("other", datetime.now(UTC))
    number = claim.incarnation + 5
    proof = shown(number, signature_by(signer, incarnation_message(number))).signature
    made = msgspec.structs.replace(claim, incarnation=number, proof=proof)
    return msgspec.structs.replace(made, signature=encoded(signature_by(signer, made.message())))


def test_only_a_claim_the_servers_authority_signed_is_obeyed(tmp_path: Path) -> None:
    template(tmp_path)
    take_over(Follower(config_of(tmp_path, "b"), CLOCK), Order(SENTENCE))
    [claim] = newest_claims(LocalStore(tmp_path / "store"))
    elsewhere = msgspec.structs.replace(claim, url="https://elsewhere.example")
    higher = msgspec.structs.replace(claim, incarnation=claim.incarnation + 1)
    directory, events = tmp_path / "at-b", Events()
    for wrong in (_forged(claim), elsewhere, higher, msgspec.structs.replace(claim, proof="")):
        which = WhichServer(directory, clock=SystemClock(), events=events, claims=lambda wrong=wrong: [wrong])  # type: ignore[misc]
        assert not which.look(trouble=True)
        assert incarnations(directory).number == 0
        assert which.urls == ()
    which = WhichServer(directory, clock=SystemClock(), events=events, claims=lambda: [claim])
    which.look(trouble=True)
    assert incarnations(directory).number == claim.incarnation
    assert known_servers(directory) == (claim.url,)
    assert events.codes() == ["server.claimed"]


def test_addresses_are_kept_as_said_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    which = WhichServer(tmp_path, clock=SystemClock(), events=Events())
    which.delivered(
        ["https://a.example", "http://b.example", "https://c.example/path", "https://d.example:8443"]
    )
    assert known_servers(tmp_path) == ("https://a.example", "https://d.example:8443")
    which.delivered([])  # a server that does not say takes nothing away
    assert known_servers(tmp_path) == which.urls == ("https://a.example", "https://d.example:8443")
    (tmp_path / whichserver.NAME).write_text("{")
    assert known_servers(tmp_path) == ()
