"""What the parts of one gateway's process are made from, and what they tell each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.common.limits import PolicyLimits
from secondsite.gateway.recovery.deletion import Forget
from secondsite.gateway.reverse.failingover import FailingOver
from secondsite.gateway.target.repair import Repairs
from secondsite.gateway.target.signals import SignalsWatch
from secondsite.journal.keys import VaultKey


@dataclass(frozen=True, eq=False)
class Parts:
    """Made once, by `main.Gateway`; what is opened is stopped by `stop`, in the reverse order."""

    config: GatewayConfig
    clock: Clock
    events: EventLog
    vault: VaultKey
    desired: DesiredState
    limits: PolicyLimits
    signals: SignalsWatch
    repairs: Repairs
    stop: contextlib.ExitStack
    failing_over: FailingOver = field(default_factory=FailingOver)  # filled in by target and source
    forget: list[Forget] = field(default_factory=list)  # what to tell when a replica was deleted
    reloads: list[Callable[[], None]] = field(default_factory=list)  # of everything that uses the certificate
