"""Pages by cursor: ``?limit=&after=``, ``{"value": [...], "nextLink": ...}``.

A cursor is the sort key of the page's last entry, so that a page costs the same wherever it is, and entries
added or removed meanwhile neither repeat nor hide others.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar
from urllib.parse import urlencode

import msgspec
from fastapi import Depends, Query, Request

from secondsite.base.parse import JSON_ERRORS
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.schemas import View

T = TypeVar("T")
LIMIT_DEFAULT = 100
LIMIT_MAX = 1000


class Page(View, Generic[T]):
    """Some entries of a listing; `nextLink` leads to the next ones, null at the end."""

    value: list[T]
    next_link: str | None = None


@dataclass(frozen=True)
class PageRequest:
    """What part of a listing is asked for. after: the decoded sort key, None from the beginning."""

    request: Request
    limit: int
    after: list[str | int] | None

    def after_text(self) -> str | None:
        """The sort key, where it is one text. Raises InputRefused."""
        if self.after is None:
            return None
        if len(self.after) != 1 or not isinstance(self.after[0], str):
            raise InputRefused(where="after", why="it is not a cursor of this listing")
        return self.after[0]

    def after_number(self) -> int | None:
        """The sort key, where it is one number. Raises InputRefused."""
        if self.after is None:
            return None
        if len(self.after) != 1 or not isinstance(self.after[0], int) or not 0 <= self.after[0] < 2**63:
            raise InputRefused(where="after", why="it is not a cursor of this listing")
        return self.after[0]

    def link(self, *key: str | int) -> str:
        """The address of the page after the entry with this sort key."""
        pairs = [(name, text) for name, text in self.request.query_params.multi_items() if name != "after"]
        return f"{self.request.url.path}?{urlencode([*pairs, ('after', encode_cursor(*key))])}"


def encode_cursor(*key: str | int) -> str:
    """A sort key as it travels."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(text: str) -> list[str | int]:
    """The sort key of a cursor. Raises InputRefused."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        key = msgspec.json.decode(raw, type=list[str | int])
    except (binascii.Error, ValueError, *JSON_ERRORS):
        raise InputRefused(where="after", why="it is not a cursor of this listing") from None
    if any(isinstance(part, str) and "\0" in part for part in key):
        raise InputRefused(where="after", why="it is not a cursor of this listing")
    return key


async def _page(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Entries at most.")] = LIMIT_DEFAULT,
    after: Annotated[
        str | None,
        Query(max_length=400, pattern=r"^[A-Za-z0-9_-]+$", description="Taken from nextLink."),
    ] = None,
) -> PageRequest:
    return PageRequest(request, limit, None if after is None else decode_cursor(after))


AskedPage = Annotated[PageRequest, Depends(_page)]
