"""What can go wrong at a hypervisor, in the words every fabric shares."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class MachineUnknown(SecondsiteError):
    """No machine has this name or id."""

    code = "fabric.machine-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no machine {machine!r} at {host}."
    cause = "The name is mistyped, or the machine was removed or moved to another host."
    action = "List the machines with `secondsite inventory` and use the name or id shown there."


class Unprotectable(SecondsiteError):
    """The machine cannot be carried to another site as it is."""

    code = "fabric.unprotectable"
    outcome = Outcome.REFUSED
    happened = "{machine} cannot be protected: {reasons}."
    cause = "Its definition holds something that has no counterpart at another site."
    action = "Change the machine as named, or leave the disk out with --disk; nothing was changed."


class TrackingLost(SecondsiteError):
    """The earlier instant is not usable any more."""

    code = "fabric.tracking-lost"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} no longer knows what changed since {checkpoint}: {why}."
    cause = "The hypervisor process ended without storing its bitmap, or the checkpoint was removed."
    action = "None: everything is compared again and only differences are sent; older points stay valid."


class SourceBusy(SecondsiteError):
    """Another job holds the machine."""

    code = "fabric.source-busy"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} is busy at its host: {why}."
    cause = "Another backup, a migration or a snapshot is running on the machine."
    action = "Wait for it to end; replication continues by itself. `virsh domjobinfo` shows the job."


class SourceGone(SecondsiteError):
    """The machine or its host does not answer."""

    code = "fabric.source-gone"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} cannot be reached: {why}."
    cause = "The machine was shut off or its hypervisor's daemon is down."
    action = "Start the machine or the daemon; replication continues by itself."


class RecoveryFailed(SecondsiteError):
    """The target hypervisor refused the recovered machine; nothing of it was left."""

    code = "fabric.recovery-failed"
    happened = "{machine} could not be started at the target: {why}."
    cause = "The target host lacks something the definition asks for, or has no room."
    action = "Correct the host or the mapping and start again; nothing was left behind."
