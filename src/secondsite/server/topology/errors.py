"""What can go wrong with clouds, in sentences."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class SiteUnknown(SecondsiteError):
    """No gateway is at such a site."""

    code = "site.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no site {site!r} in the vault {vault}."
    cause = "A mistyped name, or the last gateway of the site was removed. A site is where its gateways are."
    action = "List them with `secondsite cloud sites`; a new site comes with its first gateway."


class CloudUnknown(SecondsiteError):
    """None of that name."""

    code = "cloud.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no cloud {cloud!r} in the vault {vault}."
    cause = "A mistyped name, it was deleted, or the gateway it was made for was removed."
    action = "List them with `secondsite cloud list`."


class CloudNameTaken(SecondsiteError):
    """Two of one name."""

    code = "cloud.name-taken"
    outcome = Outcome.REFUSED
    happened = "There is a cloud {name!r} in this vault already."
    cause = "A cloud's name is its own in its vault, whatever the case of its letters."
    action = "Choose another name."


class CloudKept(SecondsiteError):
    """Made for a gateway."""

    code = "cloud.kept"
    outcome = Outcome.REFUSED
    happened = "The cloud {name} was not deleted: it is where hosts of gateway {gateway} go by themselves."
    cause = "Each gateway has such a cloud from its enrolment on, so that none of its hosts is in no cloud."
    action = "Move its hosts into another cloud (`secondsite cloud create`); it goes with its gateway."


class CloudPaired(SecondsiteError):
    """A pair stands on it."""

    code = "cloud.paired"
    outcome = Outcome.REFUSED
    happened = "The cloud {name} was not {what}: it is paired with {other}."
    cause = "Where its machines' replicas go was decided with the pair."
    action = "Delete the pair first (`secondsite pair delete`), make the change, and pair the clouds anew."


class HostUnknown(SecondsiteError):
    """No gateway of the site tells of it."""

    code = "cloud.host-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no host {host!r} at the site {site}; known are {known}."
    cause = "A mistyped name, or its gateway was not read since it was added."
    action = "See `secondsite site hosts`; `secondsite site read` has a gateway's site read now."


class CloudEmpty(SecondsiteError):
    """A cloud of no hosts."""

    code = "cloud.empty"
    outcome = Outcome.REFUSED
    happened = "The cloud {name} was not made: no host was named."
    cause = "A cloud has at least one host: without one there is nothing to protect, and nowhere to recover."
    action = "Name one or more hosts of the site; see `secondsite site hosts`."


class CloudInUse(SecondsiteError):
    """Something needs it as it is."""

    code = "cloud.in-use"
    outcome = Outcome.REFUSED
    happened = "The cloud {name} was not {what}: {uses}."
    cause = "What is protected there would go out of sight, and on being replicated."
    action = "End those protections first; see `secondsite cloud machines`."


class NoGateway(SecondsiteError):
    """Nobody can carry out what is asked of a machine."""

    code = "cloud.no-gateway"
    outcome = Outcome.NOT_FOUND
    happened = "No gateway of a published cloud tells of the machine {machine}."
    cause = "The machine was removed, its cloud is not published, or its gateway was let go."
    action = (
        "Look at `secondsite site machines --gone` and `secondsite cloud list`; then read the site again."
    )
