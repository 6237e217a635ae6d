"""An OIDC provider for tests: a real one over HTTPS on loopback, that can be told to lie.

It signs with joserfc, checks clients, codes, redirects and PKCE as RFC 6749, 7636 and 8628 say, answers as
one person who always agrees. `Lies` change what its ID tokens hold, after all that.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import trustme
from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, RSAKey

CLIENT_ID = "secondsite"
CLIENT_SECRET = "a secret: with % and / in it"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class Lies:
    """How its ID tokens differ from right ones; everything else is as it should be."""

    claims: dict[str, Any] = field(default_factory=dict)  # None: left out
    sign: Callable[[dict[str, Any]], str] | None = None


@dataclass
class Somebody:
    """Who is logged in there."""

    subject: str = "8f1c-42"
    name: str = "Maria"
    display_name: str = "Maria Schmidt"
    groups: list[str] = field(default_factory=lambda: ["dr-operators"])


@dataclass
class OidcProvider:
    """What it knows. now: its clock."""

    now: Callable[[], datetime]
    address: str = ""
    authority: str = ""
    person: Somebody = field(default_factory=Somebody)
    lies: Lies = field(default_factory=Lies)
    keys: list[Key] = field(default_factory=lambda: [_rsa("one")])
    devices: bool = True
    interval: int = 5
    says_issuer: bool = True
    agreed: bool = False  # the person entered the device's code
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)  # paths asked for
    secrets: list[str] = field(default_factory=list)  # whatever nobody else may learn of a log-in
    calls_itself: str | None = None

    @property
    def issuer(self) -> str:
        return f"{self.address}/realms/main"

    def rotate(self, *, keep: bool = False) -> None:
        """Sign with another key; the old one is shown no more."""
        new: Key = ECKey.generate_key("P-256", {"kid": secrets.token_hex(4), "use": "sig"})
        self.keys = [new, *(self.keys if keep else [])]

    def discovery(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "issuer": self.calls_itself or self.issuer,
            "authorization_endpoint": f"{self.issuer}/auth?tenant=x",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "authorization_response_iss_parameter_supported": self.says_issuer,
            "response_types_supported": ["code"],
            "scopes_supported": ["openid"],
        }
        if self.devices:
            found["device_authorization_endpoint"] = f"{self.issuer}/device"
        return found

    def authorize(self, asked: Mapping[str, str]) -> str:
        """Where the browser goes next."""
        assert asked["client_id"] == CLIENT_ID
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self.secrets += [code, asked["state"], asked["nonce"]]
        self.codes[code] = dict(asked)
        answer = {"code": code, "state": asked["state"]}
        if self.says_issuer:
            answer["iss"] = self.issuer
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def browse(self, url: str) -> dict[str, str]:
        """What a browser would bring back to the redirect, without one."""
        asked = dict(parse_qsl(urlsplit(url).query))
        return dict(parse_qsl(urlsplit(self.authorize(asked)).query))

    def token(self, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        if form["grant_type"] == DEVICE_GRANT:
            if form["device_code"] not in self.codes:
                return 400, {"error": "invalid_grant"}
            if not self.agreed:
                return 400, {"error": "authorization_pending"}
            del self.codes[form["device_code"]]
            return 200, self._answer(None)
        asked = self.codes.pop(form["code"], None)  # good once
        if asked is None or asked["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "no such code"}
        self.secrets.append(form["code_verifier"])
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
        if challenge.decode().rstrip("=") != asked["code_challenge"]:
            return 400, {"error": "invalid_grant", "error_description": "PKCE"}
        return 200, self._answer(asked["nonce"])

    def _answer(self, nonce: str | None) -> dict[str, Any]:
        access, token = secrets.token_urlsafe(8), self.id_token(nonce)
        self.secrets += [access, token, token.rpartition(".")[2]]
        return {"access_token": access, "token_type": "Bearer", "id_token": token}

    def id_token(self, nonce: str | None) -> str:
        now = int(self.now().timestamp())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "sub": self.person.subject,
            "preferred_username": self.person.name,
            "name": self.person.display_name,
            "groups": self.person.groups,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
            **self.lies.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.lies.sign is not None:
            return self.lies.sign(claims)
        key = self.keys[0]
        alg = "RS256" if isinstance(key, RSAKey) else "ES256"
        return jwt.encode({"alg": alg, "kid": key.kid}, claims, key)

    def device(self) -> dict[str, Any]:
        code = secrets.token_urlsafe(16)
        self.secrets.append(code)
        self.codes[code] = {}
        return {
            "device_code": code,
            "user_code": "WDJB-MJHT",
            "verification_uri": f"{self.issuer}/code",
            "expires_in": 600,
            "interval": self.interval,
        }


def _rsa(kid: str) -> Key:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


def unsigned(claims: dict[str, Any]) -> str:
    """alg none: anybody can make it."""
    parts = ({"alg": "none"}, claims)
    return ".".join(_b64(json.dumps(part).encode()) for part in parts) + "."


def with_public_key(key: Key) -> Callable[[dict[str, Any]], str]:
    """HS256 with the public key's text as the secret: what a careless check takes (RFC 8725, section 2.1)."""

    def sign(claims: dict[str, Any]) -> str:
        import hmac

        head = {"alg": "HS256", "kid": key.kid}
        text = ".".join(_b64(json.dumps(part).encode()) for part in (head, claims))
        secret = key.as_pem(private=False)  # type: ignore[union-attr]
        return f"{text}.{_b64(hmac.digest(secret, text.encode(), 'sha256'))}"

    return sign


def with_another_key(kid: str | None) -> Callable[[dict[str, Any]], str]:
    """Signed, but by somebody else, under the same key id."""
    return lambda claims: jwt.encode({"alg": "RS256", "kid": kid}, claims, _rsa(kid or ""))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class _Handler(BaseHTTPRequestHandler):
    provider: OidcProvider

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.provider.seen.append(path.rpartition("/")[2])
        if path.endswith("/.well-known/openid-configuration"):
            self._json(200, self.provider.discovery())
        elif path.endswith("/keys"):
            self._json(200, KeySet(self.provider.keys).as_dict(private=False))
        elif path.endswith("/auth"):
            self.send_response(302)
            self.send_header("location", self.provider.authorize(dict(parse_qsl(query))))
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self._json(404, {"error": "not_found"})

    def do_POST(self) -> None:
        form = {name: values[0] for name, values in parse_qs(self._body()).items()}
        self.provider.seen.append(self.path.rpartition("/")[2])
        if not self._client():
            self._json(401, {"error": "invalid_client"})
        elif self.path.endswith("/token"):
            self._json(*self.provider.token(form))
        elif self.path.endswith("/device") and self.provider.devices:
            self._json(200, self.provider.device())
        else:
            self._json(404, {"error": "not_found"})

    def _body(self) -> str:
        return self.rfile.read(int(self.headers["content-length"])).decode()

    def _client(self) -> bool:
        kind, _, text = self.headers.get("authorization", "").partition(" ")
        return kind == "Basic" and base64.b64decode(text).decode() == f"{CLIENT_ID}:{CLIENT_SECRET}"

    def _json(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Quiet."""


@contextlib.contextmanager
def oidc_provider(now: Callable[[], datetime]) -> Iterator[OidcProvider]:
    """A provider that answers at `issuer`."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    provider = OidcProvider(now, authority=authority.cert_pem.bytes().decode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": provider}))
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    provider.address = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
