"""When the next cycle of a machine is due, and whether it is to be application-consistent."""

from __future__ import annotations

from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.model.policies import FirstCopyStart


@dataclass(frozen=True)
class Policy:
    """How often a machine is copied, and how what is sent is compressed."""

    copy_frequency_seconds: float = 5.0
    application_consistent_frequency_seconds: float | None = None
    level: int | None = 1  # zstd's; None: not compressed
    first_copy: FirstCopyStart = field(default_factory=FirstCopyStart)
    rpo_threshold_seconds: float | None = None  # of the newest point's age; None: told by the frequency


class Pace:
    """Of one machine. The owner's lock guards every call; times are the monotonic clock's."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.policy = policy
        self._clock = clock
        self.due = 0.0
        self._application_due = 0.0

    def begin(self, stagger_seconds: float) -> None:
        """The first cycle is due after a moment that spreads machines over their interval."""
        self.due = self._clock.monotonic() + stagger_seconds
        every = self.policy.application_consistent_frequency_seconds
        self._application_due = self._clock.monotonic() + (every or 0.0)

    def change(self, policy: Policy) -> None:
        """Another policy from now on: what is due later than it says comes sooner."""
        self.policy, now = policy, self._clock.monotonic()
        self.due = min(self.due, now + policy.copy_frequency_seconds)
        every = policy.application_consistent_frequency_seconds
        self._application_due = min(self._application_due, now + (every or 0.0))

    def hurry(self) -> None:
        """The next cycle is due now."""
        self.due = self._clock.monotonic()

    def is_due(self) -> bool:
        """Whether a cycle is."""
        return self._clock.monotonic() >= self.due

    def seconds_left(self) -> float:
        """Until one is."""
        return max(0.0, self.due - self._clock.monotonic())

    def begun(self, *, asked_for: bool) -> tuple[bool, float]:
        """A cycle begins: (whether it is to be application-consistent, since when it runs)."""
        started = self._clock.monotonic()
        every = self.policy.application_consistent_frequency_seconds
        application = asked_for or (every is not None and started >= self._application_due)
        self.due = started + self.policy.copy_frequency_seconds
        return application, started

    def asked_the_guest(self, started: float) -> None:
        """That cycle was captured."""
        self._application_due = started + (self.policy.application_consistent_frequency_seconds or 0.0)
