"""A verification, and a commit that brings back what it found missing, in a process to be killed at a mark.

``python -m support.scrub_process ROOT verify|commit``; ROOT holds what `replicas.make_replica` made there.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.parse import prepare_structs
from secondsite.gateway.messages.verdicts import VerificationState, VerificationStatus, VerifyRequest
from secondsite.gateway.target.repair import Repairs
from secondsite.gateway.target.scrub import Scrubs
from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store_local import LocalStore
from support.control import Events
from support.machines import SHOP


class Target:
    """The parts of a target that verify and repair."""

    def __init__(self, root: Path) -> None:
        self.vault = VaultKey.load(root / "vault.key")
        self.store = LocalStore(root / "store")
        self.events, clock = Events(), SystemClock()
        self.repairs = Repairs(root / "state" / "repairs", vault=self.vault, clock=clock, events=self.events)
        self.scrubs = Scrubs(
            self.store,
            self.vault,
            state_dir=root / "state",
            work_dir=root,
            clock=clock,
            events=self.events,
            on_report=self.repairs.found,
        )
        self.journal = Journal(self.store, SHOP, self.vault)

    def verify(self) -> VerificationStatus:
        self.scrubs.start()
        self.scrubs.request(SHOP, VerifyRequest(requested_by="the test"))
        while (status := self.scrubs.status(SHOP)).state is VerificationState.RUNNING:
            SystemClock().wait(threading.Event(), 0.01)
        self.scrubs.close()
        return status

    def commit(self) -> None:
        """As a commit tells: the newest point may bring back what was missing."""
        self.repairs.committed(self.journal, self.journal.points()[-1])


if __name__ == "__main__":
    prepare_structs()  # as a gateway does, before it has threads
    target = Target(Path(sys.argv[1]))
    if sys.argv[2] == "verify":
        target.verify()
    else:
        target.commit()
