"""What of the bandwidth each policy may have at this time of day: one bucket for all items of a policy.

Beside the gateway's own limit, never instead of it. Windows are of the gateway's local time: they hold by
what a clock on the wall shows, so that an hour that summer time leaves out is in no window, and one it gives
twice is in its window twice.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import tzinfo

from secondsite.base.clock import Clock
from secondsite.base.units import format_bytes
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.policies import BandwidthWindow, ReplicationPolicy
from secondsite.transfer.bandwidth import TokenBucket

log = logging.getLogger(__name__)

# A window begins at a full minute and is looked for this often: it holds well within the minute.
LOOK_SECONDS = 20.0


@dataclass(eq=False)
class _Policy:
    """Of one policy. rate: bytes a second, None: no limit."""

    bucket: TokenBucket
    name: str = ""
    windows: tuple[BandwidthWindow, ...] = ()
    rate: float | None = None
    machines: set[MachineId] = field(default_factory=set)


class PolicyLimits:
    """Of one gateway; a `transfer.bandwidth.MachineLimits`. `start` once, `close` at the end. Thread-safe."""

    def __init__(self, clock: Clock, events: EventSink, zone: tzinfo | None = None) -> None:
        """zone: instead of the local time of this machine (tests)."""
        self._clock = clock
        self._events = events
        self._zone = zone
        self._lock = threading.Lock()
        self._policies: dict[str, _Policy] = {}
        self._of: dict[MachineId, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="bandwidth", daemon=True)

    def start(self) -> None:
        """Follow the clock."""
        self._thread.start()

    def close(self) -> None:
        """Stop; limits stay as they are."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def assign(self, machine: MachineId, key: str, name: str, policy: ReplicationPolicy) -> None:
        """From now on a machine's bytes count for this policy. key: equal for all items of one policy."""
        with self._lock:
            self._leave(machine, but=key)
            found = self._policies.get(key)
            if found is None:
                found = self._policies[key] = _Policy(TokenBucket(None, self._clock))
            found.name, found.windows = name, policy.bandwidth
            found.machines.add(machine)
            self._of[machine] = key
        self.look()

    def forget(self, machine: MachineId) -> None:
        """It is not protected any more."""
        with self._lock:
            self._leave(machine)

    def of(self, machine: MachineId) -> TokenBucket | None:
        """The bucket its bytes are taken from; None: its policy has no limit now."""
        with self._lock:
            policy = self._policies.get(self._of.get(machine, ""))
            return policy.bucket if policy is not None and policy.rate is not None else None

    def rate(self, machine: MachineId) -> float | None:
        """Bytes a second that its policy's items may send now, together; None: no limit."""
        with self._lock:
            policy = self._policies.get(self._of.get(machine, ""))
            return policy.rate if policy is not None else None

    def look(self) -> None:
        """What holds now, by the clock on the wall."""
        local = self._clock.utc().astimezone(self._zone)
        minute, told = local.hour * 60 + local.minute, []
        with self._lock:
            for policy in self._policies.values():
                window = next((one for one in policy.windows if one.holds_at(minute)), None)
                rate = window.bytes_per_second if window is not None else None
                if rate != policy.rate:
                    policy.rate = rate
                    policy.bucket.set_rate(rate)
                    told.append((policy.name, len(policy.machines), rate, window))
        for name, machines, rate, window in told:
            until = f", until {window.until}" if window is not None else ""
            much = (
                "as much as the gateway allows" if rate is None else f"at most {format_bytes(rate)} a second"
            )
            text = (
                f"of the policy {name or 'without a name'} ({machines} machines) {much} leaves this gateway "
                f"from now on{until} ({local:%H:%M} local time)"
            )
            self._events.emit("bandwidth.changed", Severity.INFORMATION, text)

    def _leave(self, machine: MachineId, but: str = "") -> None:
        """The caller holds the lock."""
        key = self._of.get(machine)
        if key is None or key == but:
            return
        del self._of[machine]
        policy = self._policies[key]
        policy.machines.discard(machine)
        if not policy.machines:
            del self._policies[key]

    def _root(self) -> None:
        while not self._clock.wait(self._stop, LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # a thread's root: told, and tried again
                log.exception("the bandwidth of policies was not looked at")
