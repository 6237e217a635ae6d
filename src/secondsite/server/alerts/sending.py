"""Hands a message to apprise. The only module that sees addresses in the clear; nothing of them leaves it.

apprise writes what goes wrong into its own log, addresses included: that log is closed, and what a failed
delivery says of its reason is cleaned of every part of the address but its host.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote, urlsplit

import apprise

from secondsite.model.events import Severity
from secondsite.server.alerts.errors import AddressRefused, DeliveryFailed

SEND_SECONDS_MAX = 60.0
ADDRESS_CHARACTERS_MAX = 2000
REASON_CHARACTERS_MAX = 300
# They show something on the desktop of the machine, or write into its log: nobody would see it there.
_LOCAL = frozenset({"dbus", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"})
# Their host is a host; of other services it may be a token.
_WITH_HOST = frozenset(
    {"mailto", "mailtos", "json", "jsons", "xml", "xmls", "form", "forms", "matrix", "matrixs"}
)
_TYPES = {
    Severity.INFORMATION: apprise.NotifyType.INFO,
    Severity.WARNING: apprise.NotifyType.WARNING,
    Severity.CRITICAL: apprise.NotifyType.FAILURE,
}
_ASSET = apprise.AppriseAsset(
    app_id="secondsite", app_desc="secondsite alerts", app_url="", secure_logging=True, body_format="text"
)
_log = logging.getLogger("apprise")
_log.propagate = False
_log.addHandler(logging.NullHandler())
for _name in ("apprise", "urllib3", "requests_oauthlib", "oauthlib"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # below it they write whole addresses


def service_of(address: str) -> str:
    """What kind of service an address leads to, for people. Raises AddressRefused."""
    found = _opened(address)
    return str(found[0].service_name)


def send(
    channel: str, address: str, *, title: str, body: str, severity: Severity, over: bool = False
) -> None:
    """Deliver a message. channel: its name, for the error; over: it says that something is well again.

    Raises DeliveryFailed with a reason that names nothing secret.
    """
    found = _opened(address)
    result = found.notify(
        body=body,
        title=title,
        notify_type=apprise.NotifyType.SUCCESS if over else _TYPES[severity],
        timeout=SEND_SECONDS_MAX,
    )
    if not result:
        reasons = [str(entry.message).strip() for entry in result.logs()]
        why = clean("; ".join(dict.fromkeys(filter(None, reasons))) or result.status.name.lower(), address)
        raise DeliveryFailed(channel=channel, why=why.rstrip("."))


def clean(text: str, address: str) -> str:
    """The text without any part of an address that may be secret."""
    parts = urlsplit(address)
    rest = f"{parts.netloc.rpartition('@')[0]} {parts.path} {parts.query} {parts.fragment}"
    if parts.scheme.lower() not in _WITH_HOST:
        rest += f" {parts.netloc}"
    words = {word for word in re.split(r"[\s/:@?&=#,;]+", f"{rest} {unquote(rest)}") if len(word) >= 3}
    for word in sorted({address, *words}, key=len, reverse=True):
        text = text.replace(word, "***")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:REASON_CHARACTERS_MAX]


def _opened(address: str) -> apprise.Apprise:
    scheme, separator, _ = address.lower().partition("://")
    if len(address) > ADDRESS_CHARACTERS_MAX or not separator or not re.fullmatch(r"[a-z0-9]+", scheme):
        raise AddressRefused(why="it does not begin with the name of a service and ://")
    if scheme in _LOCAL:
        raise AddressRefused(why=f"{scheme} stays on the server's own machine")
    found = apprise.Apprise(asset=_ASSET)
    added = found.add(address)
    if not added or len(found) != 1:
        several = f"{len(found)} addresses stand there"
        why = several if len(found) > 1 else "no service takes it as it is"
        raise AddressRefused(why=why)
    return found
