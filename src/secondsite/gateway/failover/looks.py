"""What is looked at before a failover beside the host: point, store, authority, source, rights.

Named as people see them: `point`, `store`, `authority`, `source-alive`, `names`, `rights`. Nothing is
changed, but for a pin of some seconds that keeps what is read; that it can be written proves that the claim
could be.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.failover.claim import check_free
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.target.views import open_point_view
from secondsite.journal.chain import Head, Journal
from secondsite.journal.keys import VaultKey
from secondsite.model.points import Point

HOLDER = "check:"
# A look is over in seconds; a gateway that dies in it leaves a pin that ends by itself.
PIN_ENDS = timedelta(minutes=10)
# Both ends of each disk are read: a partition table, its copy, and what a boot begins with.
READ_BYTES = 64 * 1024
# A source that committed a point so lately works: its interval is seconds to minutes.
ALIVE_SECONDS = 300.0
# How old an answer about rights may be.
RIGHTS_SECONDS = 10.0


def look_at_replica(journal: Journal, vault: VaultKey, point: Point, now: datetime) -> Iterator[Check]:
    """Whether the store can be written, and the point be read."""
    holder, until = f"{HOLDER}{secrets.token_hex(8)}", (now + PIN_ENDS).isoformat()
    try:
        journal.pin(point.number, holder, "looked at before a failover", until)
    except (SecondsiteError, OSError) as error:
        action = "See to the store, as RUNBOOK.md has it (store full): the machine is claimed there first."
        yield _failed("store", f"the store of its points cannot be written: {error}", action)
        return
    yield Check(name="store", passed=True)
    try:
        with open_point_view(journal, point.number, vault) as view:
            for disk in view.disks.values():
                length = min(READ_BYTES, disk.size_bytes)
                disk.read(0, length)
                disk.read(disk.size_bytes - length, length)
    except (SecondsiteError, OSError) as error:
        action = "Choose another point (--point), and see what is damaged by `secondsite verify`."
        yield _failed("point", f"point {point.number} cannot be read: {error}", action)
    else:
        yield Check(name="point", passed=True)
    finally:
        with contextlib.suppress(SecondsiteError, OSError):  # it ends by itself
            journal.unpin(holder)


def look_at_authority(head: Head, point: Point, *, ours: bool, now: datetime) -> Iterator[Check]:
    """Whose the machine is, and whether that one works now. ours: a failover of this gateway stands."""
    try:
        if not ours:
            check_free(head, point.machine_name)
    except SecondsiteError as error:
        happened, _, action = error.sentences()
        yield _failed("authority", happened.rstrip("."), action)
    else:
        yield Check(name="authority", passed=True)
    newest = head.point
    if ours or newest is None:
        return
    age = (now - parse_time(newest.committed_at)).total_seconds()
    if age < ALIVE_SECONDS:
        cause = f"its source works: it committed point {newest.number} {format_seconds(max(0.0, age))} ago"
        action = "Stop it in order where its site can be reached (`failover stop`): nothing is lost then."
        yield _failed("source-alive", cause, action, required=False)
    else:
        cause = f"its source committed nothing for {format_seconds(age)}"
        yield Check(name="source-alive", passed=True, required=False, cause=cause)


def look_at_names(unresolved: tuple[str, ...]) -> Check:
    """Whether the names of other gateways, the server and the proxy resolve here; it boots all the same."""
    if not unresolved:
        return Check(name="names", passed=True, required=False)
    cause = f"names do not resolve here: {'; '.join(unresolved)}"
    action = (
        "Correct this site's DNS (/etc/resolv.conf) or say them in /etc/hosts: the source hears of the "
        "claim, and the server of the machine, only once they resolve."
    )
    return _failed("names", cause, action, required=False)


class Rights:
    """What our account lacks at the hypervisor; a machine may be made all the same. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, tuple[Check, ...]] | None = None

    def look(self, fabric: Fabric | None) -> tuple[Check, ...]:
        """As of now, or of seconds ago: a probe is defined for it, and many may look at once."""
        if fabric is None:
            return ()
        with self._lock:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] >= RIGHTS_SECONDS:
                self._known = (now, tuple(_rights(fabric)))
            return self._known[1]


def _rights(fabric: Fabric) -> Iterator[Check]:
    missing = [check for check in fabric.readiness() if not check.ok]
    for check in missing:
        action = f"{check.fix} {f'Ask for {check.ask}.' if check.ask else ''}".strip()
        yield _failed("rights", f"{check.title}: {check.why}", action, required=False)
    if not missing:
        yield Check(name="rights", passed=True)


def _failed(name: str, cause: str, action: str, *, required: bool = True) -> Check:
    return Check(name=name, passed=False, required=required, cause=cause, action=action)
