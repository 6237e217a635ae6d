"""What can be wrong with a protected item, for those who ask."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ItemUnknown(SecondsiteError):
    """No such item in the vault."""

    code = "item.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no protected item {item} in this vault."
    cause = "Its machine was never protected, its protection was ended, or it is of another vault."
    action = (
        "List them with `secondsite item list`; what is not protected yet with `secondsite site machines`."
    )


class ItemAmbiguous(SecondsiteError):
    """Several machines have the name."""

    code = "item.ambiguous"
    outcome = Outcome.REFUSED
    happened = "{count} protected items are named {item}."
    cause = "Machines of two sites may have the same name."
    action = "Give the id instead: {ids}."


class ItemExists(SecondsiteError):
    """Protected already."""

    code = "item.exists"
    outcome = Outcome.REFUSED
    happened = "{name} is protected already: it is {state}, from {source} to {target}."
    cause = "It was protected before, here or at its gateway."
    action = "See `secondsite item show`; change its policy, disks or mapping instead of protecting it again."


class MachineHeld(SecondsiteError):
    """Its copy at the gateway that is named is not the one that counts."""

    code = "item.machine-held"
    outcome = Outcome.REFUSED
    happened = "{name} cannot be protected from {gateway}: {why}."
    cause = "Another site took the machine over, and its claim is in force: nothing is copied from {gateway}."
    action = (
        "Protect it from where it runs. If the copy at {gateway} is to count again instead: let it run "
        "(`secondsite item held-release`), remove the machine at the other site, delete its replica there "
        "(`secondsite replica delete`), then protect it."
    )


class TakenOverMeanwhile(SecondsiteError):
    """What a job waits for will not come."""

    code = "item.taken-over-meanwhile"
    outcome = Outcome.REFUSED
    happened = "{name} was taken over by {target} before its first copy was done: it is {state}."
    cause = "Somebody failed it over at that gateway itself."
    action = "Look at it (`secondsite item show`), which says what is possible now; nothing was taken back."


class ItemBehind(SecondsiteError):
    """The gateway has a newer revision than the server."""

    code = "item.behind"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway of {name} works towards revision {there}; this server knows {here}."
    cause = "The server was restored from a backup; it is taking over what the gateway knows."
    action = "Try again in a minute; replication goes on."


class ItemsTooMany(SecondsiteError):
    """One gateway cannot be told of more."""

    code = "item.too-many"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} has {count} protected items, as many as one may have."
    cause = "A gateway takes what is wanted of it as one document."
    action = "Protect the machine through another gateway of the site."


class GatewayNotConnected(SecondsiteError):
    """Nothing was heard of it lately."""

    code = "item.gateway-not-connected"
    outcome = Outcome.UNAVAILABLE
    happened = "Gateway {gateway} is not connected: its last word came {last}."
    cause = "It is stopped, revoked, or has lost its way to the server."
    action = "See `secondsite gateway show {gateway}`; when it is back, retry the job."


class MachineNotProtectable(SecondsiteError):
    """The site says that it cannot be protected."""

    code = "item.machine-not-protectable"
    outcome = Outcome.REFUSED
    happened = "{name} cannot be protected: {why}."
    cause = "The machine uses something that cannot be copied while it runs."
    action = "Change that at the machine, read the site again (`secondsite site read`), then retry the job."


class DiskUnknown(SecondsiteError):
    """A disk was named that the machine has not."""

    code = "item.disk-unknown"
    outcome = Outcome.REFUSED
    happened = "{name} has no disk {disk}."
    cause = "A mistyped name, or the disk was removed. It has: {known}."
    action = "Name its disks as the site shows them (`secondsite site machines --json`)."


class NothingLeft(SecondsiteError):
    """All disks were left out."""

    code = "item.no-disk-left"
    outcome = Outcome.REFUSED
    happened = "No disk of {name} would be protected."
    cause = "All of its disks are left out."
    action = "Leave at least one disk in; to end the protection use `secondsite item disable`."


class RecoveryKeyUnproved(SecondsiteError):
    """Rule 8: nothing is sealed with a key that only the gateway has."""

    code = "item.recovery-key-unproved"
    outcome = Outcome.REFUSED
    happened = "Nobody has proved yet to hold the recovery key of gateway {gateway}."
    cause = "Without a copy of it elsewhere the replica could not be opened once that site is gone."
    action = (
        "Prove it once: `secondsite gateway prove-key {gateway} --recovery-key FILE`; then retry the job."
    )


class GatewayRefused(SecondsiteError):
    """The gateway does not take what is wanted."""

    code = "item.gateway-refused"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} does not take what is wanted of {name}: {why}"
    cause = "What was asked for does not fit the machine, or the gateway is of another version."
    action = "Correct what it names; the job took back what it had done, so ask again then."


class GatewayTakesLong(SecondsiteError):
    """It has not said that it works towards what is wanted."""

    code = "item.gateway-takes-long"
    outcome = Outcome.UNAVAILABLE
    happened = "Gateway {gateway} has not taken what is wanted of {name} within {seconds:.0f} s."
    cause = "It is not connected, or it is busy."
    action = "See `secondsite gateway show {gateway}`; then ask again. Replication goes on as before."


class TestFailoverGone(SecondsiteError):
    """Somebody removed it while it was being looked at."""

    __test__ = False  # not a test class, whatever its name
    code = "item.test-failover-gone"
    outcome = Outcome.FAILED
    happened = "The test failover {test} of {name} is {state} before the job saw it booted."
    cause = "Somebody cleaned it up meanwhile, at its gateway."
    action = "Start another one where it is still wanted."


class GatewayStillThere(SecondsiteError):
    """There is another way than force."""

    code = "item.gateway-still-there"
    outcome = Outcome.REFUSED
    happened = "{name} is not given up: gateway {gateway} is connected."
    cause = "Giving up is for a machine whose two gateways are gone for good."
    action = "Ask it: `secondsite item show`, then commit the failover or roll it back. Nothing was changed."


class TestFailoverNone(SecondsiteError):
    """Nothing to clean up."""

    __test__ = False
    code = "item.test-failover-none"
    outcome = Outcome.REFUSED
    happened = "No test failover of {name} stands at gateway {gateway}."
    cause = "It was cleaned up already, or none was started."
    action = "Nothing; `secondsite item show` says whether one stands."


class SameGateway(SecondsiteError):
    """Source and target are one."""

    code = "item.same-gateway"
    outcome = Outcome.REFUSED
    happened = "{gateway} cannot keep the replica of a machine that it protects itself."
    cause = "A replica beside its source is lost with it."
    action = "Name a gateway of another site as target."


class StillEnding(SecondsiteError):
    """Another gateway still has to be told that an earlier protection ended."""

    code = "item.still-ending"
    outcome = Outcome.REFUSED
    happened = "{name} was protected before, and gateway {gateway} has not heard yet that this ended."
    cause = "It was away when the protection was ended by force."
    action = "Bring it back, or remove it from the vault (`secondsite gateway remove`); then protect again."


class MappingIncomplete(SecondsiteError):
    """Finalising looks whether a failover would find its place."""

    code = "item.mapping-incomplete"
    outcome = Outcome.REFUSED
    happened = "{name} cannot be finalised: {why}."
    cause = "A recovered machine needs a place for each of its disks at the target."
    action = "Map it (`secondsite item mapping`, or the pair's mapping), then `secondsite item finalise`."


class FailoverNone(SecondsiteError):
    """Nothing to go on with."""

    code = "item.failover-none"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} has no failover of {name}."
    cause = "It was committed or rolled back, or none was begun."
    action = "Look at it (`secondsite item show`), which says what is possible now."


class FailoverMoved(SecondsiteError):
    """Somebody went on with it at the gateway."""

    code = "item.failover-moved"
    outcome = Outcome.REFUSED
    happened = "The failover of {name} is {state} at gateway {gateway}: {operation} is not possible now."
    cause = "Somebody went on with it meanwhile, at the gateway itself."
    action = "Look at it (`secondsite item show`), which says what is possible now; nothing was changed."


class FailoverOther(SecondsiteError):
    """Approved, or begun, after what it was about had changed."""

    code = "item.failover-other"
    outcome = Outcome.REFUSED
    happened = "{name} is on point {point} at gateway {gateway} since a failover of {requested}: another one."
    cause = "It was turned to another point, or failed over anew, after this was asked for."
    action = "Look at it (`secondsite item show`), and ask again; nothing was changed."


class TargetElsewhere(SecondsiteError):
    """The gateway that keeps the replica is none of this server's."""

    code = "item.target-elsewhere"
    outcome = Outcome.REFUSED
    happened = "{name} cannot be failed over from here: its replica is at {gateway}, unknown to this server."
    cause = "It was protected at its gateway, towards a gateway that is not enrolled with this server."
    action = "Enrol that gateway with this server, or use `secondsite failover` at that gateway itself."


class NotHeld(SecondsiteError):
    """Nothing to decide."""

    code = "item.not-held"
    outcome = Outcome.REFUSED
    happened = "{name} is not held at gateway {gateway}."
    cause = "No failover of it was seen there, or it was decided already."
    action = "List held machines with `secondsite item held`."
