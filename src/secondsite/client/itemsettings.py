"""What recovered machines are to be, over the server's API."""

from __future__ import annotations

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer
from secondsite.model.recovered import Direction, RecoveredSettings, to_object


class Kept(Answer, frozen=True, kw_only=True):
    """What is set in one direction."""

    settings: RecoveredSettings
    changed_at: str
    changed_by: str


class ItemSettings(Answer, frozen=True, kw_only=True):
    """Both directions; None: nothing is set. left_behind: why addresses of the other site would stay."""

    forward: Kept | None
    reverse: Kept | None
    left_behind: str

    def of(self, direction: Direction) -> Kept | None:
        """One of the two."""
        return self.forward if direction is Direction.FORWARD else self.reverse


def settings(server: ServerClient, vault: str, named: str) -> ItemSettings:
    """What is set for an item."""
    return server.call("GET", at(*_of(vault, named)), ItemSettings)


def keep(
    server: ServerClient, vault: str, named: str, direction: Direction, wanted: RecoveredSettings
) -> ItemSettings:
    """Set all of it for one direction."""
    path = at(*_of(vault, named), direction.value)
    return server.call("PUT", path, ItemSettings, to_object(wanted))


def clear(server: ServerClient, vault: str, named: str, direction: Direction) -> ItemSettings:
    """Set nothing for one direction any more."""
    return server.call("DELETE", at(*_of(vault, named), direction.value), ItemSettings)


def _of(vault: str, named: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationProtectedItems", named, "recoveredMachine")
