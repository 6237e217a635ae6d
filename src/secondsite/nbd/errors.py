"""What can go wrong between NBD peers, split by what the caller may do next.

- `NbdUnreachable`, `NbdConnectionLost`: this connection is over; a new one may work.
- `NbdTryAgain`: the request failed, the connection still works; the same request may succeed later.
- `NbdNotOffered`, `NbdRequestRefused`: asking again changes nothing.
- `NbdPeerBroken`: the peer broke the protocol; the connection is closed and nothing it sent is used.
"""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class NbdError(SecondsiteError):
    """Base of everything this package raises."""


class NbdUnreachable(NbdError):
    """No connection came about."""

    code = "nbd.unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "No NBD server answers at {address}: {why}."
    cause = "The export has ended or has not begun, or the socket belongs to another user."
    action = "Start the export again and repeat; nothing was changed."


class NbdConnectionLost(NbdError):
    """The connection ended, or the peer was silent too long; it is closed now."""

    code = "nbd.connection-lost"
    outcome = Outcome.UNAVAILABLE
    happened = "The NBD connection to {address} was lost: {why}."
    cause = "The process that exports the disk ended, or its storage hangs."
    action = "None if the caller retries; otherwise look at the exporting process and its storage."


class NbdPeerBroken(NbdError):
    """The peer sent something the protocol does not allow; the connection is closed now."""

    code = "nbd.peer-broken"
    happened = "The NBD peer at {address} broke the protocol: {why}."
    cause = "Something other than an NBD server listens there, or the server has a bug."
    action = "Check what listens at that address and its version; nothing it sent was used."


class NbdNotOffered(NbdError):
    """The server has no such export, or not what we need of it."""

    code = "nbd.not-offered"
    outcome = Outcome.NOT_FOUND
    happened = "The NBD server at {address} does not offer {what}: {why}."
    cause = "The name is wrong, or the server is too old or was started without it."
    action = "List what it offers with `nbdinfo --list` and use a name shown there."


class NbdTryAgain(NbdError):
    """The server could not carry out a request this time; the connection still works."""

    code = "nbd.try-again"
    outcome = Outcome.UNAVAILABLE
    happened = "The NBD server at {address} failed to {request}: {why}."
    cause = "The storage below the export reported an error."
    action = "None if the caller retries; if it stays, look at the storage below the export."


class NbdRequestRefused(NbdError):
    """The server, or we ourselves, will never carry out this request; the connection still works."""

    code = "nbd.request-refused"
    outcome = Outcome.REFUSED
    happened = "The request to {request} at {address} was refused: {why}."
    cause = "The export is read-only, smaller than the request, or has other limits."
    action = "Open the export in the way the request needs; nothing was changed."
