"""Where alerts arrive in tests: a real SMTP server and a real HTTP listener, both on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.message
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import policy
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Mails:
    """An SMTP server that asks for a password; what it took, oldest first."""

    user: str = "alerts"
    password: str = "s3cretPassw0rd"
    taken: list[email.message.EmailMessage] = field(default_factory=list)
    refuse: bool = False
    port: int = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refuse:
            return "452 4.2.2 mailbox full"
        assert isinstance(envelope.content, bytes)
        made = email.message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(made, email.message.EmailMessage)
        self.taken.append(made)
        return "250 taken"

    def check(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth: object
    ) -> AuthResult:
        good = isinstance(auth, LoginPassword) and (auth.login, auth.password) == (
            self.user.encode(),
            self.password.encode(),
        )
        return AuthResult(success=good, handled=False)

    def address(self, password: str | None = None) -> str:
        where = f"{self.user}:{password or self.password}@127.0.0.1:{self.port}"
        return f"mailto://{where}?from=secondsite@site.example&to=oncall@site.example&mode=insecure"


class _AnyPort(Controller):
    """The system chooses the port; the class would ask itself at port 0 whether it runs."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def mail_server() -> Iterator[Mails]:
    mails = Mails()
    controller = _AnyPort(
        mails,
        hostname="127.0.0.1",
        port=0,
        auth_required=True,
        auth_require_tls=False,
        authenticator=mails.check,
    )
    controller.start()
    mails.port = controller.port
    try:
        yield mails
    finally:
        controller.stop()


@dataclass
class Hooks:
    """An HTTP listener; the bodies it took, oldest first. status: what it answers."""

    taken: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: int = 200
    port: int = 0

    def address(self) -> str:
        return f"json://127.0.0.1:{self.port}/hooks/T0kenInThePath?key=Qu3rySecret"

    @property
    def titles(self) -> list[str]:
        return [taken["title"].removeprefix("[secondsite] ") for taken in self.taken]


@contextlib.contextmanager
def web_hook() -> Iterator[Hooks]:
    hooks = Hooks()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            hooks.paths.append(self.path)
            if hooks.status == 200:
                hooks.taken.append(json.loads(body))
            self.send_response(hooks.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hooks.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hooks
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
