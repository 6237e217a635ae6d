"""What fails machines over and back at one gateway: its parts, as far as it has them."""

from __future__ import annotations

from dataclasses import dataclass

from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.reverse.kept import Kept
from secondsite.gateway.reverse.service import Reversals
from secondsite.gateway.source.plannedstop import PlannedStops


@dataclass(eq=False)
class FailingOver:
    """The parts of one gateway, as far as it has them."""

    failovers: Failovers | None = None  # None without a store
    fencing: Fencing | None = None  # None where nothing is protected
    stops: PlannedStops | None = None  # likewise
    kept: Kept | None = None  # None without a store
    reversals: Reversals | None = None  # None where nothing is protected, or no points are received

    def close_source(self) -> None:
        """End what the source's parts do; what is isolated stays so."""
        for part in (self.stops, self.fencing):
            if part is not None:
                part.close()


NO_FAILING_OVER = FailingOver()
