"""What can go wrong between a gateway and its server, seen from the gateway."""

from __future__ import annotations

from secondsite.base.errors import Outcome, SecondsiteError


class ServerUnreachable(SecondsiteError):
    """No connection, or it broke."""

    code = "server.unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "The server {server} cannot be reached: {why}."
    cause = (
        "It is not running, the network or a proxy in between refuses the connection, or its name is wrong."
    )
    action = "Check the address and that outbound HTTPS is allowed; replication goes on without the server."


class ServerNotTrusted(SecondsiteError):
    """Somebody answers, and cannot prove to be the server."""

    code = "server.not-trusted"
    outcome = Outcome.REFUSED
    happened = "The server {server} is not the one to trust: {why}."
    cause = "The address leads to another server, or something in between opens TLS connections."
    action = "Compare the address with the one shown where the registration key was made. Nothing was sent."


class OwnCertificateRefused(SecondsiteError):
    """The server ended the connection over our certificate."""

    code = "server.refuses-certificate"
    outcome = Outcome.REFUSED
    happened = "The server {server} does not accept this gateway's certificate: {why}."
    cause = "It has expired, or it is of another server's authority."
    action = "Enrol again with a key made for this gateway: `secondsite vault key VAULT --again NAME`."


class ServerAnswerUnknown(SecondsiteError):
    """The answer does not parse."""

    code = "server.answer-unknown"
    happened = "The server {server} answered in a way this gateway does not understand: {why}."
    cause = "Something else answers there, or the two are of versions that do not fit."
    action = "Compare `secondsite --version` at both ends; the server is updated first, then gateways."


class EnrolledAlready(SecondsiteError):
    """Nothing is replaced by accident."""

    code = "enrolment.already"
    outcome = Outcome.REFUSED
    happened = "{directory} holds the enrolment of {name} with {server}."
    cause = "The gateway was enrolled before."
    action = "Add --replace to enrol it again, with a key made for it, or give another --out."


class NotEnrolled(SecondsiteError):
    """The directory holds no enrolment."""

    code = "enrolment.missing"
    outcome = Outcome.USAGE
    happened = "{directory} holds no enrolment: {why}."
    cause = "The gateway was not enrolled, or its files were moved or damaged."
    action = "Enrol it with `secondsite gateway enrol --key-file FILE --out {directory}`."


class WorkRefused(SecondsiteError):
    """The server let this gateway go."""

    code = "gateway.work-refused"
    outcome = Outcome.REFUSED
    happened = "This gateway takes no new work: {text}."
    cause = "Somebody unregistered it, removed it, or revoked its certificate at its server."
    action = "Enrol it again, or take [server] out of its configuration and start it, if it is to work alone."
