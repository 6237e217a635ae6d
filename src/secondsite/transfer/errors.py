"""What can go wrong between two sites. The outcome says whether trying again can help (`retryable`)."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class LinkDown(SecondsiteError):
    """The peer cannot be reached, or the connection broke."""

    code = "link.down"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway {peer} cannot be reached: {why}."
    cause = "The network between the sites is cut, or the other gateway is not running."
    action = (
        "Check the network and the other gateway; replication goes on by itself and copies only what changed."
        " See RUNBOOK.md, lag grows."
    )


class LinkTimeout(SecondsiteError):
    """The peer took too long."""

    code = "link.timeout"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway {peer} did not answer within {seconds} s ({what})."
    cause = "The network between the sites drops packets, or the other gateway is overloaded."
    action = "Check the network; the transfer is tried again by itself. See RUNBOOK.md, lag grows."


class CertificateRefused(SecondsiteError):
    """The TLS handshake failed over a certificate."""

    code = "link.certificate-refused"
    outcome = Outcome.REFUSED
    happened = "The connection with {peer} was refused: {why}."
    cause = "A certificate is expired, revoked, of another authority, or names another gateway."
    action = (
        "Renew the certificate with the site's authority, or correct the peer's name in the configuration."
    )


class PeerNotAllowed(SecondsiteError):
    """Authenticated, but not for this machine."""

    code = "link.peer-not-allowed"
    outcome = Outcome.REFUSED
    happened = "The gateway {peer} may not write machine {machine}: {why}."
    cause = "The machine is not in the peer's list here, or another gateway is its writer."
    action = (
        "Add the machine to the peer's list in this gateway's configuration, or stop protecting it there."
    )


class ProtocolViolation(SecondsiteError):
    """The peer sent what the wire does not allow."""

    code = "link.protocol"
    outcome = Outcome.REFUSED
    happened = "The peer {peer} sent something the protocol does not allow: {why}."
    cause = "A version of secondsite that does not fit this one, or something that is not secondsite."
    action = "Install the same version on both gateways."


class Overloaded(SecondsiteError):
    """Too many connections at once."""

    code = "link.overloaded"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway has {connections} connections already, and takes no more."
    cause = "Many peers, or one that does not close its connections."
    action = "None if it passes; otherwise look at the list of peers in the event log."


class HashMismatch(SecondsiteError):
    """The bytes that arrived are not those announced."""

    code = "link.hash-mismatch"
    # the staged bytes are dropped, so sending them again from the start may succeed
    outcome = Outcome.UNAVAILABLE
    happened = "The bytes of segment {segment} have the hash {found}, not {expected} as announced."
    cause = "Bytes were damaged on the way, in a cache, or between two attempts."
    action = "None: the bytes were dropped, and the segment is sent again from its start."


class SegmentConflict(SecondsiteError):
    """A different object has this name."""

    code = "link.segment-conflict"
    outcome = Outcome.REFUSED
    happened = "The object {segment} is at the target already with other content: {why}."
    cause = "Two writers used the same name, or an object was changed outside secondsite."
    action = "Run `secondsite segment verify` on the store; the source repeats the cycle under new names."


class SegmentRefused(SecondsiteError):
    """Its header does not fit the name it was sent under."""

    code = "link.segment-refused"
    outcome = Outcome.REFUSED
    happened = "The segment {segment} was refused: {why}."
    cause = "The source sent it under a wrong name, or it is damaged."
    action = "Look at the source's events; the cycle is repeated from the last committed point."


class TransferCancelled(SecondsiteError):
    """The caller asked to stop."""

    code = "link.cancelled"
    outcome = Outcome.CANCELLED
    happened = "The transfer of {what} was cancelled."
    cause = "The gateway is stopping, or the protection was removed."
    action = "None."


class ClaimRefused(SecondsiteError):
    """The peer may not become the writer."""

    code = "link.claim-refused"
    outcome = Outcome.REFUSED
    happened = "{peer} may not claim machine {machine}: its writer is {claimant} since epoch {epoch}."
    cause = "The machine was failed over, or another gateway protects it."
    action = "Reprotect the machine from the side that is the authority now; nothing was changed."


class StopRefused(SecondsiteError):
    """What was told of a stop in order does not hold any more."""

    code = "link.stop-refused"
    outcome = Outcome.REFUSED
    happened = "That machine {machine} stands still on point {point} was not noted: {why}."
    cause = "The stop was cancelled, or something followed the point that it named as its last."
    action = "Stop it again (`secondsite failover stop`)."


class CacheFull(SecondsiteError):
    """The spool is at its limit."""

    code = "spool.full"
    outcome = Outcome.UNAVAILABLE
    happened = "The cache {directory} holds {used} of {limit} and has no room for {need} more."
    cause = "The link to the other site is cut, or slower than the changes; or the volume is full."
    action = (
        "None: capture pauses while change tracking goes on; a larger cache bridges longer cuts."
        " See RUNBOOK.md, lag grows."
    )


class CacheLost(SecondsiteError):
    """The spool's volume is not the one it was."""

    code = "spool.lost"
    outcome = Outcome.FAILED
    happened = "The cache {directory} lost what was spooled: {why}."
    cause = "The volume was replaced, emptied or not mounted."
    action = "None: capture starts again from the last committed checkpoint. Check the volume."


class PayloadLost(SecondsiteError):
    """A spooled segment's file ended early or is gone."""

    code = "spool.payload-lost"
    outcome = Outcome.DAMAGED
    happened = "The spooled segment {path} is shorter than it was, or gone."
    cause = "The cache volume was damaged, emptied or filled by something else."
    action = "None: capture starts again from the last committed checkpoint. Check the volume."


class ShipmentLost(SecondsiteError):
    """Segments of an instant are neither here nor at the target."""

    code = "ship.lost"
    outcome = Outcome.FAILED
    happened = "The changes of machine {machine} up to {what} cannot be sent: {why}."
    cause = "The target's store lost segments it had acknowledged, or the cache lost segments it held."
    action = "None: they are captured again, counted from the last committed checkpoint."


class DigestsNotReady(SecondsiteError):
    """The target's digest table does not hold the newest point now."""

    code = "digests.not-ready"
    outcome = Outcome.UNAVAILABLE
    happened = "The digests of disk {disk} at point {point} are not there yet: {why}."
    cause = "The target lost its digest table (a crash, a lost cache volume), and makes it again."
    action = "None: it is asked again until the table is made."


class DigestsRefused(SecondsiteError):
    """The digests asked for are of a state that cannot be compared."""

    code = "digests.other-state"
    outcome = Outcome.REFUSED
    happened = "The digests of disk {disk} at point {point} cannot be compared: {why}."
    cause = "A point was committed meanwhile, or the disk has another key there."
    action = "None: the source looks again where the target stands."
