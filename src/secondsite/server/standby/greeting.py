"""Says hello to another server of ours: over TLS, proved with a key made of the master key."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from secondsite.client.connection import Connection, ServerAnswerUnknown, ServerUntrusted
from secondsite.server.identity.envelopes import MasterKey
from secondsite.transfer.standby import PATH_HELLO, PURPOSE, Hello, HelloAnswer

SECONDS_MAX = 10.0


def greet(url: str, hello: Hello, master: MasterKey, authority_pem: str) -> HelloAnswer:
    """Its answer. Raises RemoteError, InvalidInput and what `Connection` raises of a server."""
    said = hello.proved(master.derive(PURPOSE)).model_dump(mode="json", by_alias=True)
    try:
        answer = _ask(url, said, authority_pem)
    except ServerUntrusted:
        # its certificate may be of an authority that machines trust anyway ([tls] of its configuration)
        answer = _ask(url, said, "")
    try:
        return HelloAnswer.model_validate(answer)
    except ValidationError as error:
        raise ServerAnswerUnknown(server=url, why=error.errors()[0]["msg"]) from None


def _ask(url: str, said: object, authority_pem: str) -> dict[str, Any]:
    connection = Connection(url, authority=authority_pem, seconds_max=SECONDS_MAX)
    try:
        return connection.call("POST", PATH_HELLO, dict[str, Any], said)
    finally:
        connection.close()
