"""The proxy between a gateway and its server: tried before it is saved, the old one kept when it fails.

Credentials lie in a file of their own, which may be changed at any time: it is read for each connection.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership, load_membership
from secondsite.gateway.uplink.enrolclient import Way, enrolled_client
from secondsite.transfer import enrolment as wire


class ProxyNotUsable(SecondsiteError):
    """The server was not reached that way."""

    code = "proxy.not-usable"
    outcome = Outcome.REFUSED
    happened = "The server {server} was not reached {way}, so nothing was changed: {why}."
    cause = "{cause}"
    action = "Correct the proxy or its credentials and try again; the gateway goes on {before} as before."


@dataclass(frozen=True)
class ProxyWay:
    """url None: directly."""

    url: str | None = None
    credentials: Path | None = None

    @classmethod
    def of(cls, membership: Membership) -> ProxyWay:
        """As a gateway goes now."""
        return cls(membership.proxy, membership.proxy_credentials)

    @property
    def words(self) -> str:
        """Completes "goes to its server ..."."""
        return "directly" if self.url is None else f"through the proxy {self.url}"


def environment_way(server: str) -> ProxyWay:
    """As this process's environment says (https_proxy, all_proxy, no_proxy), in curl's reading of them."""
    host = urlsplit(server).hostname or ""
    known = getproxies_environment()
    url = known.get("https") or known.get("all")
    if not url or proxy_bypass(host):
        return ProxyWay()
    return ProxyWay(url if "://" in url else f"http://{url}")


def check_credentials(path: Path) -> Path:
    """The file, where nobody but its owner can read it. Raises InvalidInput."""
    what = f"the proxy credentials {path}"
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInput(what=what, why=error.strerror or "the file cannot be read") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(what=what, why="it is no file")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidInput(what=what, why=f"others than its owner may read it: `chmod 600 {path}`")
    return path.resolve()


def try_way(directory: Path, way: ProxyWay) -> None:
    """Reach the server that way, with the gateway's own certificate. Raises ProxyNotUsable, NotEnrolled."""
    found = load_membership(directory)
    files = EnrolmentFiles(directory, found.name)
    try:
        client = enrolled_client(
            Way(found.server, way.url, way.credentials), files.tls, system_trust=found.system_trust
        )
        try:
            client.get(wire.PATH_REVOCATIONS, wire.RevocationsAnswer)
        finally:
            client.close()
    except InvalidInput:
        raise
    except SecondsiteError as error:
        _, cause, _ = error.sentences()
        before = ProxyWay.of(found).words
        why = str(error).rstrip(".")
        raise ProxyNotUsable(
            server=found.server, way=way.words, why=why, cause=cause, before=before
        ) from error


def change_way(directory: Path, way: ProxyWay) -> Membership:
    """Try it, then save it; a running gateway follows with its next request.

    Raises ProxyNotUsable, InvalidInput or NotEnrolled; the way before stays then.
    """
    try_way(directory, way)
    # read again: its state may have changed while we tried
    found = load_membership(directory)
    changed = found.model_copy(update={"proxy": way.url, "proxy_credentials": way.credentials})
    EnrolmentFiles(directory, found.name).save(changed)
    return changed
