"""Logging in at an OIDC provider from a terminal: with a browser on this machine, or with one elsewhere."""

from __future__ import annotations

import http.server
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from secondsite.base.errors import Outcome, SecondsiteError

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient

# As long as the server waits for the end of a log-in.
SECONDS_MAX = 600.0
PATH = "/callback"
_PAGE = b"<!doctype html><title>secondsite</title><p>You are back at your terminal now; close this page.</p>"


class LoginAtProvider(SecondsiteError):
    """The person, or the provider, did not go through with it."""

    code = "login.at-provider"
    outcome = Outcome.REFUSED
    happened = "The log-in at the provider came to nothing: {why}."
    cause = "It was closed, refused or forgotten; or something else opened the page this command waits at."
    action = "Try again; where no browser can reach this machine's loopback, use `--oidc --device`."


class _Waiting(http.server.BaseHTTPRequestHandler):
    """Takes the browser's return, once."""

    server: _Loopback

    def do_GET(self) -> None:
        """Only the answer to this log-in ends the wait: any page a browser shows can ask for this address."""
        parts = urlsplit(self.path)
        found = {name: values[0] for name, values in parse_qs(parts.query).items()}
        mine = parts.path == PATH and found.get("state") == self.server.state
        self.send_response(200 if mine else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("cache-control", "no-store")
        self.send_header("referrer-policy", "no-referrer")
        self.send_header("content-length", str(len(_PAGE) if mine else 0))
        self.end_headers()
        if mine:
            self.wfile.write(_PAGE)
            self.server.found = found
            self.server.came.set()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Nothing: the code is in the address."""


class _Loopback(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Waiting)
        self.state = ""
        self.came = threading.Event()
        self.found: dict[str, str] = {}

    @property
    def address(self) -> str:
        """Where the browser is sent back to."""
        return f"http://127.0.0.1:{self.server_address[1]}{PATH}"


@contextmanager
def _loopback() -> Iterator[_Loopback]:
    listening = _Loopback()
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield listening
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def with_browser(server: ServerClient) -> str:
    """Open the provider's page here; the session's token. Raises LoginAtProvider and what the server says."""
    from secondsite.client import oidc

    with _loopback() as listening:
        begun = oidc.begin_login(server, listening.address)
        listening.state = begun.state
        print(
            f"log in at the page that opens now, or open it yourself:\n  {begun.authorization_url}",
            file=sys.stderr,
        )
        webbrowser.open(begun.authorization_url)
        if not listening.came.wait(SECONDS_MAX):
            raise LoginAtProvider(why="nobody came back from the browser in ten minutes")
        found = listening.found
    if "code" not in found:
        raise LoginAtProvider(
            why=_plain(found.get("error_description") or found.get("error") or "no code came back")
        )
    made = oidc.finish_login(server, begun, code=found["code"], state=found["state"], issuer=found.get("iss"))
    return made.text


def with_device(server: ServerClient) -> str:
    """Say what to enter elsewhere, and wait for it; the session's token. Raises as `with_browser`."""
    from secondsite.base.clock import SystemClock
    from secondsite.client import oidc

    begun = oidc.begin_device(server)
    print(
        f"open {_plain(begun.verification_uri)} and enter the code {_plain(begun.user_code)}", file=sys.stderr
    )
    if begun.verification_uri_complete:
        print(f"  or open {_plain(begun.verification_uri_complete)}", file=sys.stderr)
    clock, never, wait = SystemClock(), threading.Event(), begun.interval_seconds
    while True:
        clock.wait(never, wait)
        found = oidc.ask_device(server, begun)
        if found.token is not None:
            return found.token.text
        wait = found.wait_seconds or begun.interval_seconds


def _plain(text: str) -> str:
    """What others wrote, without what a terminal obeys."""
    return "".join(letter for letter in text if letter.isprintable())[:500]
