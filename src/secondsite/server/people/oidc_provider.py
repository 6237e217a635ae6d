"""Talking to an OIDC provider: what it says of itself, its keys, and tokens for codes.

Everything is HTTPS, bounded in time and size, and follows no redirect. What a provider says of itself is kept
for an hour; its keys, too, and are fetched anew when a token names one that is not known (rotation), at most
every half minute, so that made-up tokens do not make us ask without end.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet, import_key

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.units import MIB
from secondsite.server.api.errors import NotReady
from secondsite.server.people.oidc_errors import OidcNoDevices, OidcRefused, OidcUnreachable

T = TypeVar("T")

SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 1 * MIB
KEPT_SECONDS = 3600.0
KEYS_AGAIN_SECONDS = 30.0
# Each holds a thread for up to ten seconds: a provider that hangs must not take all of the server's.
AT_ONCE_MAX = 4
# With a public half; a shared secret among them must not become one that signs.
KEY_KINDS = ("RSA", "EC", "OKP")
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# A code nobody issued: who is known to the provider gets another refusal than who is not.
TRIAL_CODE = "secondsite-tries-its-client-secret"


@dataclass(frozen=True)
class Settings:
    """A provider as an owner set it. authority: PEM; empty: the system's own. secret: None: there is none."""

    issuer: str
    client_id: str
    secret: str | None
    authority: str = ""
    scopes: str = "openid profile"
    groups_claim: str = "groups"
    name_claim: str = "preferred_username"
    session_minutes: int = 720

    def __repr__(self) -> str:
        return f"Settings({self.issuer}, {self.client_id})"


class Discovered(msgspec.Struct, frozen=True):
    """What a provider says of itself (OpenID Connect Discovery 1.0, RFC 8414)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    device_authorization_endpoint: str | None = None
    authorization_response_iss_parameter_supported: bool = False
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class DeviceCode(msgspec.Struct, frozen=True):
    """What a person enters elsewhere (RFC 8628)."""

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: int
    verification_uri_complete: str | None = None
    interval: int = 5


class _Keys(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str


@dataclass(frozen=True)
class Pending:
    """The person has not entered the device's code yet. slower: we asked too often."""

    slower: bool


class _Bounded(httpx2.BaseTransport):
    """No answer is larger than we read, whatever its header says; nothing compressed."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request."""
        request.headers["accept-encoding"] = "identity"
        answer = self._inner.handle_request(request)
        try:
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise httpx2.DecodingError("its answer is compressed, which was not asked for")
            body = bytearray()
            assert isinstance(answer.stream, httpx2.SyncByteStream)
            for chunk in answer.stream:
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise httpx2.ReadError("its answer is larger than 1 MiB")
        finally:
            answer.close()
        return httpx2.Response(
            answer.status_code, headers=answer.headers, content=bytes(body), request=request
        )

    def close(self) -> None:
        """Drop its connections."""
        self._inner.close()


class Provider:
    """One provider with these settings. Thread-safe."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises InvalidInput where the issuer is no HTTPS address, or the authority no certificate."""
        self.settings = settings
        self._clock = clock
        _https(settings.issuer, "the issuer")
        try:
            self._context = ssl.create_default_context(cadata=settings.authority or None)
        except ssl.SSLError as error:
            raise InvalidInput(what="the provider's authority", why=str(error)) from None
        self._turn = threading.BoundedSemaphore(AT_ONCE_MAX)
        self._lock = threading.Lock()
        self._found: tuple[float, Discovered] | None = None
        self._keys: tuple[float, KeySet] | None = None

    @contextmanager
    def _client(self, method: str = "none") -> Iterator[Any]:
        if not self._turn.acquire(timeout=SECONDS_MAX):
            raise NotReady(why="too many people log in at the OIDC provider at once")
        settings = self.settings
        try:
            with OAuth2Client(
                settings.client_id,
                settings.secret,
                token_endpoint_auth_method=method,
                scope=settings.scopes,
                code_challenge_method="S256",
                transport=_Bounded(httpx2.HTTPTransport(verify=self._context, trust_env=False)),
                timeout=SECONDS_MAX,
                follow_redirects=False,
                trust_env=False,
            ) as client:
                yield client
        except OAuthError as error:
            raise OidcRefused(issuer=settings.issuer, why=_said(error)) from None
        except (httpx2.HTTPError, OSError, ValueError, msgspec.MsgspecError, JoseError) as error:
            why = str(error) or type(error).__name__
            raise OidcUnreachable(issuer=settings.issuer, why=why[:300]) from None
        finally:
            self._turn.release()

    def _get(self, url: str, kind: type[T]) -> T:
        with self._client() as client:
            answer = client.request("GET", url, withhold_token=True, headers={"accept": "application/json"})
            if answer.status_code != 200:
                raise OidcUnreachable(
                    issuer=self.settings.issuer, why=f"{urlsplit(url).path} is answered {answer.status_code}"
                )
            return msgspec.json.decode(answer.content, type=kind)

    def discovered(self) -> Discovered:
        """What it says of itself. Raises OidcUnreachable."""
        return self._kept("_found", KEPT_SECONDS, self._discover)

    def _discover(self) -> Discovered:
        settings = self.settings
        found = self._get(settings.issuer.rstrip("/") + "/.well-known/openid-configuration", Discovered)
        if found.issuer != settings.issuer:
            why = f"it calls itself {found.issuer[:200]!r}"
            raise OidcUnreachable(issuer=settings.issuer, why=why)
        for url in (
            found.authorization_endpoint,
            found.token_endpoint,
            found.jwks_uri,
            found.device_authorization_endpoint,
        ):
            if url is not None:
                _https(url, "an address the provider names")
        return found

    def keys(self, *, anew: bool = False) -> KeySet:
        """The keys it signs with. anew: one is missing among those kept. Raises OidcUnreachable."""
        return self._kept("_keys", KEYS_AGAIN_SECONDS if anew else KEPT_SECONDS, self._fetch_keys)

    def _fetch_keys(self) -> KeySet:
        found = self._get(self.discovered().jwks_uri, _Keys).keys
        usable: list[Key] = []
        for key in found:
            # what is there for something else, or of a kind we do not know, is no reason to let nobody in
            with contextlib.suppress(JoseError, ValueError, KeyError, TypeError):
                if key.get("use", "sig") == "sig" and key.get("kty") in KEY_KINDS:
                    usable.append(import_key(key))
        if not usable:
            raise OidcUnreachable(issuer=self.settings.issuer, why="it shows no key that signs")
        return KeySet(usable)

    def _kept(self, name: str, seconds: float, fetch: Callable[[], T]) -> T:
        with self._lock:
            kept: tuple[float, T] | None = getattr(self, name)
        if kept is not None and self._clock.monotonic() - kept[0] < seconds:
            return kept[1]
        found = fetch()
        with self._lock:
            setattr(self, name, (self._clock.monotonic(), found))
        return found

    def authorization_url(self, *, redirect: str, state: str, nonce: str, verifier: str) -> str:
        """Where a person's browser begins."""
        url = self.discovered().authorization_endpoint
        with self._client() as client:
            found, _ = client.create_authorization_url(
                url, state=state, code_verifier=verifier, nonce=nonce, redirect_uri=redirect
            )
            return str(found)

    def redeem(self, code: str, *, redirect: str, verifier: str) -> str:
        """The ID token for a code. Raises OidcRefused or OidcUnreachable."""
        return self._fetch(
            grant_type="authorization_code", code=code, redirect_uri=redirect, code_verifier=verifier
        )

    def begin_device(self) -> DeviceCode:
        """A code for a machine without a browser. Raises OidcNoDevices, OidcRefused or OidcUnreachable."""
        url = self.discovered().device_authorization_endpoint
        if url is None:
            raise OidcNoDevices(issuer=self.settings.issuer)
        with self._client() as client:
            body = {"client_id": self.settings.client_id, "scope": self.settings.scopes}
            auth = client.client_auth(self._method()) if self.settings.secret else None
            answer = client.request("POST", url, data=body, withhold_token=True, auth=auth)
            if answer.status_code != 200:
                raise OidcRefused(issuer=self.settings.issuer, why=f"a device's code: {_problem(answer)}")
            return msgspec.json.decode(answer.content, type=DeviceCode)

    def redeem_device(self, device_code: str) -> str | Pending:
        """The ID token, once the person has entered the code. Raises OidcRefused or OidcUnreachable."""
        try:
            return self._fetch(grant_type=DEVICE_GRANT, device_code=device_code)
        except OidcRefused as error:
            said = str(error.fields["why"]).partition(":")[0]
            if said in ("authorization_pending", "slow_down"):
                return Pending(said == "slow_down")
            raise

    def check(self) -> Discovered:
        """Try what a log-in needs: what it says of itself, its keys, and whether it knows our secret."""
        found = self.discovered()
        self.keys()
        try:
            self._fetch(
                grant_type="authorization_code",
                code=TRIAL_CODE,
                redirect_uri="http://127.0.0.1/callback",
                code_verifier="0" * 43,
            )
        except OidcRefused as error:
            # any other refusal is one of the code, which nobody issued
            if str(error.fields["why"]).partition(":")[0] in ("invalid_client", "unauthorized_client"):
                raise
        return found

    def _fetch(self, **form: str) -> str:
        url = self.discovered().token_endpoint
        with self._client(self._method()) as client:
            answer = client.fetch_token(url, **form)
            return msgspec.convert(dict(answer), type=_Tokens).id_token

    def _method(self) -> str:
        if self.settings.secret is None:
            return "none"
        offered = self.discovered().token_endpoint_auth_methods_supported
        return "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"


def _https(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        right = (
            parts.scheme == "https"
            and bool(parts.hostname)
            and not parts.fragment
            and "@" not in parts.netloc
        )
    except ValueError:
        right = False
    if not right:
        raise InvalidInput(what=f"{what} {url[:200]!r}", why="it is not https://HOST/...")


def _said(error: OAuthError) -> str:
    return f"{error.error}: {error.description or ''}".strip(": ")[:300]


def _problem(answer: httpx2.Response) -> str:
    try:
        return str(msgspec.json.decode(answer.content, type=dict[str, Any]).get("error", answer.status_code))
    except msgspec.MsgspecError:
        return str(answer.status_code)
