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


_COMPARED = (
    "None: everything is compared again and only differences are sent; older points stay valid."
    " See RUNBOOK.md, source lost its tracking."
)


class TrackingLost(SecondsiteError):
    """What changed since the earlier instant is not known, for no disk."""

    code = "tracking.lost"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} no longer knows what changed since {checkpoint}: {why}."
    cause = "The hypervisor dropped its record of changes; its own words are above."
    action = _COMPARED


class CheckpointUnknown(TrackingLost):
    """The host has neither the checkpoint nor its bitmaps."""

    code = "tracking.checkpoint-unknown"
    cause = "The checkpoint was deleted, or the machine was defined anew on other images."


class BitmapLost(TrackingLost):
    """The host lists the checkpoint, its bitmaps are broken or gone."""

    code = "tracking.bitmap-lost"
    cause = "The hypervisor process was killed before it stored its bitmaps, or the images were exchanged."


class ContentReverted(TrackingLost):
    """The disks went back to an earlier state, of which bitmaps know nothing."""

    code = "tracking.reverted"
    cause = "A person went back to a snapshot of the machine."


class ChangedWhileOff(TrackingLost):
    """The images were written to while the machine was off."""

    code = "tracking.changed-while-off"
    cause = "A person or a program worked on the images, or put others in their place."


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


class SourceOff(SourceGone):
    """The machine is shut off: nothing of its disks changes, and what tracks them is kept."""

    code = "fabric.source-off"
    happened = "{machine} is off: {why}."
    cause = "Somebody shut it down, or it ended by itself."
    action = "None: once it is started again, replication goes on from where it was."


class SourceMoved(SourceGone):
    """The machine is not at this host any more."""

    code = "fabric.source-moved"
    happened = "{machine} is not at this host any more: {why}."
    cause = "It was migrated to another host, or removed."
    action = (
        "Protect it from the gateway of the host it is on; if it comes back here, replication continues by "
        "itself. Its points stay."
    )


class NotIsolated(SecondsiteError):
    """Only what was isolated before is removed."""

    code = "fabric.not-isolated"
    outcome = Outcome.REFUSED
    happened = "{machine} was not removed from its host: it is not isolated there."
    cause = "Somebody let it go meanwhile, so it may be in use."
    action = "See `secondsite held list`; isolate it again by taking it over, or remove it by hand."


class HypervisorUnreachable(SecondsiteError):
    """The hypervisor's daemon does not answer."""

    code = "fabric.hypervisor-unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "The hypervisor at {uri} does not answer: {why}."
    cause = "libvirtd is stopped, or this user may not use its socket."
    action = "Check `virsh -c {uri} version` as the same user; the connection is made again by itself."


class RecoveryFailed(SecondsiteError):
    """The target hypervisor refused the recovered machine; nothing of it was left."""

    code = "fabric.recovery-failed"
    happened = "{machine} could not be started at the target: {why}."
    cause = "The target host lacks something the definition asks for, or has no room."
    action = "Correct the host or the mapping and start again; nothing was left behind."
