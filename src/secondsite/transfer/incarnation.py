"""How server and gateways tell lives of one server apart: a signed number in a header of all they say.

    x-secondsite-incarnation: NUMBER.SIGNATURE      base64url, no padding, ECDSA by the server's authority

A server restored from a backup has a higher incarnation than the one the backup is of. A gateway obeys the
highest it has met and shows it with every request; a server that is shown a higher one than its own, signed
by its authority, knows that it lives on beside a restored one, and refuses. Without the signature any gateway
could end a server's work by naming a number.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

INCARNATION_HEADER = "x-secondsite-incarnation"
TEXT_CHARACTERS_MAX = 256


@dataclass(frozen=True)
class ShownIncarnation:
    """What a header says. number 0: nothing."""

    number: int = 0
    signature: str = ""

    @property
    def text(self) -> str:
        """As it travels."""
        return f"{self.number}.{self.signature}"

    def signed(self) -> bytes:
        """The signature's bytes; empty (which proves nothing) when the text is none."""
        try:
            padded = self.signature + "=" * (-len(self.signature) % 4)
            return base64.b64decode(padded, altchars=b"-_", validate=True)
        except ValueError:
            return b""


def shown(number: int, signature: bytes) -> ShownIncarnation:
    """A number with its signature."""
    return ShownIncarnation(number, base64.urlsafe_b64encode(signature).decode().rstrip("="))


def incarnation_message(number: int) -> bytes:
    """What is signed."""
    return f"secondsite incarnation 1\n{number}".encode()


def parse_incarnation(text: str | None) -> ShownIncarnation:
    """The header's words; nothing where there is none, or none that counts."""
    number, _, signature = (text or "").partition(".")
    if (
        not (number.isascii() and number.isdecimal())
        or len(number) > 18
        or len(text or "") > TEXT_CHARACTERS_MAX
    ):
        return ShownIncarnation()
    return ShownIncarnation(int(number), signature)
