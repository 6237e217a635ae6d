"""Whose retention counts for a replica kept here: a server's, where it names the machine, else our own."""

from __future__ import annotations

import dataclasses
import functools

from secondsite.gateway.common.desired import DesiredState
from secondsite.model.ids import MachineId
from secondsite.model.retention import Policies, RetentionPolicy, Served


def policies_of(own: Policies, desired: DesiredState | None) -> Policies:
    """`own` below what a server wants as of the moment it is asked; it goes on while the server is away.

    A replica whose protection ended is kept as it was wanted last.
    """
    if desired is None:
        return own

    def served(machine: MachineId) -> Served | None:
        wanted = desired.replica(machine)
        if wanted is None:
            return None
        by = f"the server's policy {wanted.policy_name}" if wanted.policy_name else "the server"
        return Served(_parsed(wanted.retention), by)

    return dataclasses.replace(own, served=served)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> RetentionPolicy:
    return RetentionPolicy.parse(text)
