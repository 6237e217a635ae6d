"""What only the libvirt fabric can say, and the translation of libvirt's own errors.

No `libvirt.libvirtError` leaves this package: `translate` turns each into an error an operator can act on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import libvirt

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.fabrics.errors import HypervisorUnreachable, SourceBusy, SourceGone, SourceMoved


class HypervisorRefused(SecondsiteError):
    """libvirt refused a call for a reason we have no better word for."""

    code = "fabric.hypervisor-refused"
    happened = "The hypervisor refused to {what}: {why}."
    cause = "See the hypervisor's own words above; its log has the details."
    action = "Correct what it names and try again."


class HostUnready(SecondsiteError):
    """Something outside libvirt is missing on the host."""

    code = "fabric.host-unready"
    outcome = Outcome.REFUSED
    happened = "The host cannot be used yet: {why}."
    cause = "A part of secondsite's installation on this host is missing."
    action = "{remedy}"


class GuardUnavailable(SecondsiteError):
    """The guard process neither answers nor starts."""

    code = "fabric.guard-unavailable"
    outcome = Outcome.UNAVAILABLE
    happened = "The guard at {socket} does not answer: {why}."
    cause = "The guard process could not start, or its socket's directory is not writable."
    action = (
        "Start `secondsite guard` by hand and read its log; no job is opened and no guest frozen without it."
    )


# A connection that is gone; everything else came from a daemon that is alive.
_GONE = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_AUTH_FAILED,
}
# The machine's job lock was not got within libvirt's 30 s, or another job excludes this one.
_BUSY = {libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY, libvirt.VIR_ERR_OPERATION_ABORTED}


def connection_lost(error: libvirt.libvirtError) -> bool:
    """Whether the daemon went away (so that opening again may help), not whether it said no."""
    domains = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
    if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:
        # "client socket is closed": the daemon ended under a call
        return error.get_error_domain() in domains
    return error.get_error_code() in _GONE and (
        error.get_error_domain() in domains or error.get_error_code() != libvirt.VIR_ERR_SYSTEM_ERROR
    )


def words(error: libvirt.libvirtError) -> str:
    """libvirt's message as the inside of a sentence."""
    return str(error.get_error_message() or error).strip().rstrip(".")[:400]


def translate(error: libvirt.libvirtError, *, machine: str | None, what: str) -> SecondsiteError:
    """The operator's error for libvirt's; `what` completes "refused to ..."."""
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN and machine is not None:
        return SourceMoved(machine=machine, why="the hypervisor knows no machine of its identity")
    if machine is not None and code in _BUSY:
        return SourceBusy(machine=machine, why=words(error))
    if connection_lost(error):
        if machine is not None:
            return SourceGone(machine=machine, why=words(error))
        return HypervisorUnreachable(uri="the configured URI", why=words(error))
    return HypervisorRefused(what=what, why=words(error))


@contextlib.contextmanager
def translated(what: str, *, machine: str | None = None) -> Iterator[None]:
    """Run libvirt calls; `what` completes "refused to ..."."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, machine=machine, what=what) from error
