"""Why a vault, a key or a gateway is refused, one class a reason, so that each can be acted on."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.api.errors import HttpError


class VaultUnknown(SecondsiteError):
    """No such vault."""

    code = "vault.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no vault {vault!r}."
    cause = "A mistyped name, or it was deleted."
    action = "See `secondsite vault list`."


class VaultNameTaken(SecondsiteError):
    """Two vaults of one name would be mistaken for each other."""

    code = "vault.name-taken"
    outcome = Outcome.REFUSED
    happened = "There is a vault {name!r} already."
    cause = "Names of vaults are unique, capital letters or not."
    action = "Choose another name, or rename the other vault."


class VaultInUse(SecondsiteError):
    """Something is registered in it."""

    code = "vault.in-use"
    outcome = Outcome.REFUSED
    happened = "The vault {name!r} was not deleted: it has {uses}."
    cause = "Deleting it would leave them without a place where they are known."
    action = (
        "Unregister and remove them first, or add --with-gateways to have that done; nothing was changed."
    )


class RegistrationKeyUnknown(SecondsiteError):
    """No such key."""

    code = "registration-key.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no registration key {key!r} in this vault."
    cause = "A mistyped id, or it belongs to another vault."
    action = "See `secondsite vault keys VAULT`."


class RegistrationKeyRefused(HttpError):
    """Not proved. Why exactly is not for who cannot prove it."""

    code = "registration-key.refused"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The server does not know this registration key, or the request does not prove it."
    cause = "The key belongs to another server, its vault was deleted, or the request was changed on its way."
    action = "Make a new one with `secondsite vault key VAULT --out FILE` and enrol with it."


class RegistrationKeyExpired(HttpError):
    """Day 6."""

    code = "registration-key.expired"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The registration key ended on {ends}; it is {now} at the server."
    cause = "A registration key is valid for {days} days from when it was made."
    action = "Make a new one with `secondsite vault key VAULT --out FILE` and enrol with it."


class RegistrationKeyRevoked(HttpError):
    """Withdrawn by a person."""

    code = "registration-key.revoked"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The registration key was revoked on {at}."
    cause = "Somebody withdrew it, for example because it was seen by others."
    action = "Make a new one with `secondsite vault key VAULT --out FILE` and enrol with it."


class RegistrationKeyForAnother(HttpError):
    """Made for one gateway by name."""

    code = "registration-key.for-another"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The registration key was made to enrol {expected} again, not {name}."
    cause = "It was used at the wrong machine, or for a new gateway."
    action = "Use it with --name {expected}, or make a key without --again."


class EnrolmentReplayed(HttpError):
    """A nonce counts once, and for five minutes."""

    code = "enrolment.replayed"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The enrolment was refused: {why}."
    cause = "The request was sent a second time, by a proxy in between or by somebody who recorded it."
    action = (
        "Run `secondsite gateway enrol` again: it asks for a new nonce. If it was not you, revoke the key."
    )


class GatewayNameTaken(HttpError):
    """Nobody becomes a gateway that is there by taking its name."""

    code = "enrolment.name-taken"
    outcome = Outcome.REFUSED
    status = 409
    happened = "There is a gateway {name} already, with another key."
    cause = "The name is used at another machine, or this one lost its certificate and enrols again."
    action = (
        "Choose another --name; if this is the same gateway, make a key for it with "
        "`secondsite vault key VAULT --again {name} --out FILE`."
    )


class VersionRefused(HttpError):
    """Server first, then gateways, then agents."""

    code = "gateway.version-refused"
    outcome = Outcome.REFUSED
    status = 409
    happened = "The gateway {name} is of version {gateway}, the server of {server}: the gateway is {how}."
    cause = "A server works with gateways of its own version and of the minor version before."
    action = (
        "Update {what} first. The order of updates is {order}, that of a roll-back the reverse. "
        "Replication between gateways goes on meanwhile."
    )


class GatewayUnknown(SecondsiteError):
    """No such gateway."""

    code = "gateway.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no gateway {name!r}."
    cause = "A mistyped name, or it was removed."
    action = "See `secondsite gateway list`."


class GatewayRemoved(HttpError):
    """The caller's certificate is of the authority, and its gateway is gone."""

    code = "gateway.removed"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The gateway {name} was removed from this server, or was never registered with it."
    cause = "Somebody removed it, or the server's state was restored from before it was enrolled."
    action = "Enrol it again with a registration key, if it is to work for this server."


class GatewayRevoked(HttpError):
    """Its certificate is no longer trusted."""

    code = "gateway.revoked"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The certificate {serial} of the gateway {name} is revoked: {why}."
    cause = "Somebody revoked it, for example because its key may have been copied."
    action = "Enrol the gateway again: `secondsite vault key VAULT --again {name} --out FILE`."


class GatewayUnregistered(HttpError):
    """It is of no vault any more."""

    code = "gateway.unregistered"
    outcome = Outcome.REFUSED
    status = 403
    happened = "The gateway {name} was unregistered on {at}: {why}."
    cause = "Somebody took it out of its vault."
    action = "Enrol it again with a registration key made with --again, if it is to work for this server."


class GatewayStillRegistered(SecondsiteError):
    """Remove what is unregistered."""

    code = "gateway.still-registered"
    outcome = Outcome.REFUSED
    happened = "The gateway {name} was not removed: it is registered."
    cause = "Its certificate is valid, and it may be working."
    action = "Unregister it first with `secondsite gateway unregister {name}`; nothing was changed."


class GatewayNotTold(SecondsiteError):
    """Only a gateway that is registered learns that its machines were taken over."""

    code = "gateway.not-told"
    outcome = Outcome.REFUSED
    happened = "The gateway {name} has not learnt that other sites took over {machines}."
    cause = "It was not heard of since. Let go it learns nothing when it returns, and they would run twice."
    action = (
        "Leave it registered while its host may start again, until `secondsite item held` shows its copies. "
        "If it can never return, add --in-use to let it go anyway."
    )


class GatewayInUse(SecondsiteError):
    """Something depends on it."""

    code = "gateway.in-use"
    outcome = Outcome.REFUSED
    happened = "The gateway {name} is needed: {uses}."
    cause = "Without it they would no longer be protected."
    action = (
        "Disable their protection or move them to another gateway first; or add --in-use to do it anyway."
    )


class GatewayTransition(SecondsiteError):
    """Not possible in this state."""

    code = "gateway.illegal-transition"
    outcome = Outcome.REFUSED
    happened = "The gateway {name} cannot be {event} while it is {state}."
    cause = "Somebody else changed it meanwhile."
    action = "Possible now: {possible}. Nothing was changed."


class TooManyCertificates(HttpError):
    """A gateway that asks again and again."""

    code = "enrolment.too-many-certificates"
    outcome = Outcome.REFUSED
    status = 429
    happened = "The gateway {name} has {count} certificates that are valid; it gets no more for now."
    cause = "It asks for new ones in a loop: its disk may not keep what it gets."
    action = "Look at its log and the room on its disk; revoke it if it is not yours."
