"""Whether this gateway reaches another one: a real handshake, both certificates, the version, clocks, room.

    GET /v1/peers/{name}/check?url=&guess=   -> PeerCheck

url: where the peer listens; without it as this gateway's configuration says, else where `guess` says. Nothing
is changed at either end. What stands in the way is part of the answer, with its cause and what to do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.messages.wire import Wire
from secondsite.model.versions import Version, fit
from secondsite.transfer.errors import ProtocolViolation
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.tls import TlsFiles

# A point's age is told by two clocks; beyond this the answer says so (the server refuses five minutes).
CLOCK_SECONDS_MAX = 60.0
# Below this a first copy of any machine is likely to fill the store.
ROOM_BYTES_MIN = 1024**3
CHECK_IDLE_SECONDS = 15.0


class PeerAddressMissing(SecondsiteError):
    """Nobody said where the other gateway listens."""

    code = "peer.address-missing"
    outcome = Outcome.USAGE
    happened = "This gateway does not know where the gateway {peer} listens."
    cause = "Neither the server nor [peers] in this gateway's configuration names its address."
    action = "Set `advertise` under [listen] in the configuration of {peer} to https://HOST:9443, restart it."


class PeerVersionDiffers(SecondsiteError):
    """They may not work together."""

    code = "peer.version-differs"
    outcome = Outcome.REFUSED
    happened = "Gateway {peer} has version {theirs}, this gateway has {ours}: they do not work together."
    cause = "One of the two was not updated."
    action = "Update the older one; see `secondsite gateway list`."


class PeerClockOff(SecondsiteError):
    """Ages of points would be wrong."""

    code = "peer.clock-off"
    outcome = Outcome.REFUSED
    happened = "The clock of gateway {peer} is {seconds:+.0f} s off this gateway's."
    cause = "One of the two does not follow a time source; at most {limit:.0f} s are accepted."
    action = "Set the clock that is wrong (for example with chrony), and check again."


class PeerStoreFull(SecondsiteError):
    """There is no room for a replica."""

    code = "peer.store-full"
    outcome = Outcome.REFUSED
    happened = "The store of gateway {peer} has {free} bytes left."
    cause = "The volume is nearly full, or smaller than was meant."
    action = "Make room on the volume of the store at {peer}, or name another one; then check again."


class PeerCheck(Wire, frozen=True, kw_only=True):
    """What came of it. ok: nothing stands in the way."""

    peer: str
    ok: bool
    url: str = ""
    reachable: bool = False  # it answered over TLS, each end taking the other's certificate
    version: str = ""
    round_trip_seconds: float | None = None
    clock_seconds: float | None = None  # by which its clock is ahead of ours
    free_bytes: int | None = None  # None: an object store, or a gateway that does not tell
    problems: tuple[dict[str, object], ...] = ()  # errors, as they travel


class PeerChecks:
    """Checks the way to other gateways with this gateway's own certificate. Thread-safe."""

    def __init__(self, files: TlsFiles, urls: Mapping[str, str], *, version: str, clock: Clock) -> None:
        """urls: of the configuration. version: this gateway's."""
        self._files = files
        self._urls = urls
        self._version = version
        self._clock = clock

    def check(self, peer: str, url: str | None = None, guess: str | None = None) -> PeerCheck:
        """Try it now; takes at most some tens of seconds. guess: where nobody said anything else."""
        where = url or self._urls.get(peer) or guess
        if where is None:
            return PeerCheck(peer=peer, ok=False, problems=(PeerAddressMissing(peer=peer).as_dict(),))
        try:
            told, seconds, sent = self._ask(peer, where)
            clock = _ahead(peer, told.get("at"), sent)
            problems = self._problems(peer, told.get("version", ""), clock, _free(told))
        except SecondsiteError as error:
            return PeerCheck(peer=peer, ok=False, url=where, problems=(error.as_dict(),))
        return PeerCheck(
            peer=peer,
            ok=not problems,
            url=where,
            reachable=True,
            version=told.get("version", ""),
            round_trip_seconds=seconds,
            clock_seconds=clock,
            free_bytes=_free(told),
            problems=tuple(error.as_dict() for error in problems),
        )

    def _ask(self, peer: str, url: str) -> tuple[dict[str, str], float, dt.datetime]:
        """Its answer, how long one question takes on an open connection, and the middle of that time."""
        link = HttpsLink(
            url, peer, self._files, clock=self._clock, connections=1, idle_seconds=CHECK_IDLE_SECONDS
        )
        try:
            link.health()  # connects: what follows measures the way alone
            began, sent = self._clock.monotonic(), self._clock.utc()
            told = link.health()
            seconds = self._clock.monotonic() - began
        finally:
            link.close()
        return told, seconds, sent + dt.timedelta(seconds=seconds / 2)

    def _problems(
        self, peer: str, version: str, clock: float | None, free: int | None
    ) -> list[SecondsiteError]:
        found: list[SecondsiteError] = []
        if not _works(self._version, version):
            found.append(PeerVersionDiffers(peer=peer, theirs=version, ours=self._version))
        if clock is not None and abs(clock) > CLOCK_SECONDS_MAX:
            found.append(PeerClockOff(peer=peer, seconds=clock, limit=CLOCK_SECONDS_MAX))
        if free is not None and free < ROOM_BYTES_MIN:
            found.append(PeerStoreFull(peer=peer, free=free))
        return found


def _ahead(peer: str, text: str | None, sent: dt.datetime) -> float | None:
    """By how many seconds a peer's time is ahead of ours; None: it is of a version that does not tell."""
    if text is None:
        return None
    try:
        return (dt.datetime.fromisoformat(text) - sent).total_seconds()
    except (ValueError, TypeError):  # TypeError: without a time zone
        raise ProtocolViolation(peer=peer, why=f"its time is {text[:40]!r}") from None


def _free(told: Mapping[str, str]) -> int | None:
    text = told.get("freeBytes", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _works(ours: str, theirs: str) -> bool:
    """Whether two gateways' versions work together, whichever of them is the newer."""
    a, b = Version.parse(ours), Version.parse(theirs)
    return fit(a, b).works or fit(b, a).works
