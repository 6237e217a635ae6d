"""Whether an ID token is one, for us, of this log-in (OpenID Connect Core 1.0, section 3.1.3.7)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError

from secondsite.server.people.oidc_errors import OidcLoginWrong
from secondsite.server.people.oidc_provider import Provider, Settings

# Signatures with a public key only: a shared secret, or none, is never taken, whatever a token's head says.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
CLOCKS_APART_SECONDS = 60
# One made longer ago is not of a log-in that just ended.
AGE_SECONDS_MAX = 600
TOKEN_CHARACTERS_MAX = 64 * 1024
SUBJECT_CHARACTERS_MAX = 255  # what the specification allows
GROUPS_MAX = 1000


@dataclass(frozen=True)
class Person:
    """Who the provider says somebody is. subject: theirs for good; name and groups may change."""

    issuer: str
    subject: str
    name: str
    display_name: str
    groups: tuple[str, ...]


def read_id_token(text: str, provider: Provider, *, nonce: str | None, now: datetime) -> Person:
    """Check signature, issuer, audience, times and nonce. nonce: None where none was sent (device codes).

    Raises OidcLoginWrong (saying why, never what the token holds) or OidcUnreachable.
    """
    settings = provider.settings
    if len(text) > TOKEN_CHARACTERS_MAX:
        raise OidcLoginWrong(why="its token is larger than any")
    claims = _signed(text, provider)
    seconds = int(now.timestamp())
    rules = jwt.JWTClaimsRegistry(
        now=seconds,
        leeway=CLOCKS_APART_SECONDS,
        iss={"essential": True, "value": settings.issuer},
        aud={"essential": True, "value": settings.client_id},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    try:
        rules.validate(dict(claims))
    except JoseError as error:
        raise OidcLoginWrong(why=f"its token's claims do not hold ({error.error})") from None
    _check_ours(claims, settings.client_id)
    issued = claims["iat"]
    if not isinstance(issued, int | float) or issued < seconds - AGE_SECONDS_MAX - CLOCKS_APART_SECONDS:
        raise OidcLoginWrong(why="its token was made too long ago")
    if nonce is not None and not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
        raise OidcLoginWrong(why="its token is of another log-in")
    return _person(claims, settings)


def _signed(text: str, provider: Provider) -> Mapping[str, object]:
    try:
        try:
            return jwt.decode(text, provider.keys(), algorithms=ALGORITHMS).claims
        except InvalidKeyIdError:
            # it signs with a new key since we looked
            return jwt.decode(text, provider.keys(anew=True), algorithms=ALGORITHMS).claims
    except (JoseError, ValueError) as error:
        raise OidcLoginWrong(why=f"its token is not signed as it must be ({type(error).__name__})") from None


def _check_ours(claims: Mapping[str, object], client_id: str) -> None:
    audience, party = claims.get("aud"), claims.get("azp")
    if isinstance(audience, list) and len(audience) > 1 and party is None:
        raise OidcLoginWrong(why="its token is for several, and does not say for whom it was made")
    if party is not None and party != client_id:
        raise OidcLoginWrong(why="its token was made for another")


def _person(claims: Mapping[str, object], settings: Settings) -> Person:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX or "\0" in subject:
        raise OidcLoginWrong(why="its token names nobody")
    groups = claims.get(settings.groups_claim, ())
    if isinstance(groups, str):
        groups = groups.split()
    if not isinstance(groups, list | tuple) or len(groups) > GROUPS_MAX:
        raise OidcLoginWrong(why=f"the claim {settings.groups_claim} is no list of groups")
    return Person(
        issuer=settings.issuer,
        subject=subject,
        name=_text(claims.get(settings.name_claim)),
        display_name=_text(claims.get("name")),
        groups=tuple(group for group in groups if isinstance(group, str)),
    )


def _text(value: object) -> str:
    """For people to read: without what a terminal obeys."""
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:100]
