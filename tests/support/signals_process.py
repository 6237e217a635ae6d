"""A target that judges points as they are committed, in a process to be killed at a mark.

``python -m support.signals_process ROOT commit COUNT|dismiss``: COUNT points in all, going on from what the
store has; quiet ones, but for `ENCRYPTED` ones from `SUSPICIOUS` on that look as if the disks were encrypted
in place. It prints the codes of its events, one a line, as they come.
"""

from __future__ import annotations

import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.gateway.messages.gateway import DismissRequest
from secondsite.gateway.target.signals import SignalsWatch
from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store_local import LocalStore
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import Consistency, DiskState, PointProposal
from secondsite.model.signals import WARM_UP_POINTS, Signals
from support.machines import SHOP

DISK = DiskId("vda")
SUSPICIOUS = WARM_UP_POINTS + 4  # index of the first point in doubt
ENCRYPTED = 10  # so many, then it is quiet again
QUIET = Signals(
    written_bytes=2 * MIB,
    rewritten_bytes=1 * MIB,
    packed_bytes=MIB,
    entropy=4800,
    rewritten_entropy=4800,
    seconds=5.0,
)
ENCRYPTING = Signals(
    written_bytes=256 * MIB,
    rewritten_bytes=256 * MIB,
    packed_bytes=256 * MIB,
    hard_bytes=256 * MIB,
    scrambled_bytes=256 * MIB,
    entropy=7990,
    rewritten_entropy=7990,
    seconds=5.0,
)


class Printed:
    """An event sink."""

    def emit(self, code: str, severity: Severity, text: str, **data: object) -> None:
        print(code, flush=True)


class Target:
    """The journal below ROOT and its watch."""

    def __init__(self, root: Path) -> None:
        self.vault = VaultKey.of(b"v" * 32)
        self.store = LocalStore(root / "store")
        self.journal = Journal(self.store, SHOP, self.vault)
        self.watch = SignalsWatch(clock=SystemClock(), events=Printed())

    def commit(self, count: int) -> None:
        clock, journal = SystemClock(), self.journal
        if not journal.head().epoch:
            journal.claim(
                name="shop", claimant="a", reason="first copy", clock=clock, expected=journal.head()
            )
        for index in range(len(journal.points()), count):
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=5 * index)
            proposal = PointProposal(
                machine=SHOP,
                machine_name="shop",
                epoch=journal.head().epoch,
                nonce=secrets.token_hex(16),
                checkpoint=f"cp{index}",
                parent_checkpoint=f"cp{index - 1}" if index else None,
                asked_at=at.isoformat(timespec="microseconds"),
                given_at=at.isoformat(timespec="microseconds"),
                consistency=Consistency.CRASH,
                disks=(DiskState(id=DISK, size_bytes=32 << 30, key_id=KeyId("0" * 32)),),
                segments=(),
                definition=b"",
                changed_bytes=0,
                signals=ENCRYPTING if 0 <= index - SUSPICIOUS < ENCRYPTED else QUIET,
            )
            self.watch.committed(journal, journal.commit(proposal, clock=clock))


if __name__ == "__main__":
    target = Target(Path(sys.argv[1]))
    if sys.argv[2] == "commit":
        target.commit(int(sys.argv[3]))
    else:
        target.watch.dismiss(target.journal, DismissRequest(note="a restore from tape", by="anna"))
