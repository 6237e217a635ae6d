"""What can go wrong with logging in at an OIDC provider, in sentences."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.api.errors import HttpError


class OidcNone(SecondsiteError):
    """Not set up."""

    code = "oidc.none"
    outcome = Outcome.REFUSED
    happened = "This server knows no OIDC provider."
    cause = "None was set, or it was removed."
    action = "Log in with --user or --token-file, or ask an owner for `secondsite server oidc set`."


class OidcUnreachable(SecondsiteError):
    """The provider does not answer, or not as one."""

    code = "oidc.unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "The OIDC provider {issuer} did not answer as it should: {why}."
    cause = "It is away, its address is another, its certificate is not trusted, or a proxy is in between."
    action = (
        "See that the server reaches it; `secondsite server oidc set` with --authority where it has a CA."
    )


class OidcRefused(SecondsiteError):
    """It answers, and says no to us."""

    code = "oidc.refused"
    outcome = Outcome.REFUSED
    happened = "The OIDC provider {issuer} refused: {why}."
    cause = "The client's id or secret is another there, or the redirect is not registered with it."
    action = "Compare `secondsite server oidc show` with the client's settings at the provider."


class OidcLoginWrong(HttpError):
    """Whatever is wrong with a log-in: which it was is for the server's log and the audit log."""

    code = "oidc.login-refused"
    outcome = Outcome.REFUSED
    status = 401
    happened = "The log-in at the OIDC provider was not accepted: {why}."
    cause = "It was not finished in time, was used already, or something in between answered in its place."
    action = "Begin anew with `secondsite login --oidc`; if it stays so, an owner finds why in the audit log."


class OidcNoRole(HttpError):
    """Known to the provider, and nothing here."""

    code = "oidc.no-role"
    outcome = Outcome.REFUSED
    status = 403
    happened = "{who} has no role on this server."
    cause = "None of their groups at the provider is mapped to a role: {groups}."
    action = (
        "Ask an owner for `secondsite server oidc map GROUP ROLE`, or for a place in a group that is mapped."
    )


class OidcNoDevices(SecondsiteError):
    """The provider does not know device codes."""

    code = "oidc.no-device-codes"
    outcome = Outcome.REFUSED
    happened = "The OIDC provider {issuer} offers no log-in with a device's code."
    cause = "It does not have it (RFC 8628), or it is switched off for this client."
    action = "Log in with `secondsite login --oidc` on a machine with a browser, or make a token there."
