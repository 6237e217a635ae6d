"""What can be wrong with alerts, in sentences. None names an address: it is a secret."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ChannelUnknown(SecondsiteError):
    """Nobody made it."""

    code = "alert.channel-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no alert channel {name}."
    cause = "A mistyped name, or it was removed."
    action = "See `secondsite alert channel list`."


class RuleUnknown(SecondsiteError):
    """Nobody made it."""

    code = "alert.rule-unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no alert rule {name}."
    cause = "A mistyped name, or it was removed with its channel."
    action = "See `secondsite alert rule list`."


class NameTaken(SecondsiteError):
    """Names are told apart by."""

    code = "alert.name-taken"
    outcome = Outcome.REFUSED
    happened = "There is an alert {what} {name} already."
    cause = "Each has a name of its own."
    action = "Choose another name, or remove the other one first."


class TooMany(SecondsiteError):
    """Each event is tried against each rule."""

    code = "alert.too-many"
    outcome = Outcome.REFUSED
    happened = "There are {limit} alert {what} already, and no more are kept."
    cause = "Rules name severities, codes with a *, vaults and gateways: few say much."
    action = "Remove those that are not needed."


class AddressRefused(SecondsiteError):
    """It does not parse, or leads to this machine's desktop."""

    code = "alert.address-refused"
    outcome = Outcome.USAGE
    happened = "The address is not one that alerts can be sent to: {why}."
    cause = "It is mistyped, or of a service that is not supported."
    action = (
        "Give one address of the kinds that apprise knows, like mailtos://USER:PASSWORD@HOST?to=WHO or "
        "jsons://HOST/PATH (docs/monitoring.md)."
    )


class DeliveryFailed(SecondsiteError):
    """The service did not take it."""

    code = "alert.delivery-failed"
    outcome = Outcome.UNAVAILABLE
    happened = "The alert did not reach {channel}: {why}."
    cause = "The service is away, does not know the address any more, or refuses us."
    action = "It is tried again for an hour; `secondsite alert channel test {channel}` tries at once."
