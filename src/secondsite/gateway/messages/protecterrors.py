"""What is refused about protections."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class PeerUnknown(SecondsiteError):
    """The configuration names no such peer."""

    code = "gateway.peer-unknown"
    outcome = Outcome.USAGE
    happened = "There is no peer {peer!r} to protect machines at; there is {known}."
    cause = "The name is mistyped, or neither the configuration nor the server names the peer."
    action = "Name one that is listed, or add it to the peers of this gateway's configuration."


class NotProtected(SecondsiteError):
    """The machine is not protected here."""

    code = "gateway.not-protected"
    outcome = Outcome.NOT_FOUND
    happened = "The machine {machine} is not protected by this gateway."
    cause = "It was unprotected, or another gateway protects it."
    action = "List protected machines with `secondsite status`."


class FailoverOpen(SecondsiteError):
    """The machine runs here by a failover that can be undone."""

    code = "gateway.failover-open"
    outcome = Outcome.REFUSED
    happened = "{machine} was not protected: its failover to this site is {state}."
    cause = "It can be rolled back, and is gone from here then; it stands on the export of a point meanwhile."
    action = "Commit it first (`secondsite failover commit`)."


class ItemOfServer(SecondsiteError):
    """A server says how it is protected."""

    code = "item.of-server"
    outcome = Outcome.REFUSED
    happened = "{machine} is the protected item {item} of the server, which says how it is protected."
    cause = "Two places that change one protection would undo each other's changes."
    action = "Change it at the server. Pause, resume and resync work here too."
