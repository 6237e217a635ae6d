"""The server's API as methods. All raise what `Connection.call` raises.

with ServerClient.logged_in() as server:
    for user in server.users():
        print(user.name)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar
from urllib.parse import quote, urlencode

from secondsite.client.connection import Connection
from secondsite.client.login import Login, load_login
from secondsite.client.messages import (
    AuditEntry,
    AuditVerified,
    Health,
    Job,
    JobDetail,
    JobLogLine,
    Me,
    NewToken,
    Page,
    SiteRead,
    SiteStatus,
    Thing,
    Token,
    User,
)

T = TypeVar("T")
NONE = type(None)
ThingKind = Literal["machines", "hosts", "networks", "storageClassifications"]


def at(*parts: str) -> str:
    """A path of these parts, each quoted."""
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


class ServerClient:
    """One connection to one server; not thread-safe. A context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def of(cls, login: Login) -> ServerClient:
        """With a log-in."""
        return cls(Connection(login.server, login.token, authority=login.authority))

    @classmethod
    def logged_in(cls) -> ServerClient:
        """With this user's log-in. Raises NotLoggedIn, LoginReadable or InvalidInput."""
        return cls.of(load_login())

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        """Any request of the API; its answer as `kind`."""
        return self._connection.call(method, path, kind, body)

    def pages(self, path: str, kind: type[Page[T]]) -> Iterator[T]:
        """All entries of a listing, page after page, each asked for when it is needed."""
        link: str | None = path
        while link is not None:
            page = self.call("GET", link, kind)
            yield from page.value
            link = page.next_link

    # the server

    def health(self) -> Health:
        """Whether it lives."""
        return self.call("GET", at("health"), Health)

    # who I am

    def log_in(self, user_name: str, password: str) -> NewToken:
        """A session."""
        return self.call("POST", at("sessions"), NewToken, {"userName": user_name, "password": password})

    def set_up(self, setup_token: str, password: str | None = None) -> NewToken:
        """Use the set-up token of a new server, once."""
        return self.call("POST", at("setup"), NewToken, {"setupToken": setup_token, "password": password})

    def log_out(self) -> None:
        """End the session, or the API token, in use."""
        self.call("DELETE", at("sessions", "current"), NONE)

    def me(self) -> Me:
        """Who I am."""
        return self.call("GET", at("me"), Me)

    def set_own_password(self, password: str, before: str = "") -> None:
        """Change my password."""
        self.call("PUT", at("me", "password"), NONE, {"password": password, "before": before})

    # tokens; user None: my own

    def tokens(self, user: str | None = None) -> list[Token]:
        """API tokens."""
        return self.call("GET", at(*_whose(user), "tokens"), Page[Token]).value

    def create_token(
        self,
        name: str,
        *,
        user: str | None = None,
        days: int = 90,
        vault: str | None = None,
        role: str | None = None,
    ) -> NewToken:
        """Make an API token, limited to a vault, to what a role may, or both."""
        body = {"name": name, "days": days, "vault": vault, "role": role}
        return self.call("POST", at(*_whose(user), "tokens"), NewToken, body)

    def remove_token(self, token: str, *, user: str | None = None) -> None:
        """End an API token at once."""
        self.call("DELETE", at(*_whose(user), "tokens", token), NONE)

    # users

    def users(self) -> Iterator[User]:
        """All users, by name."""
        return self.pages(at("users"), Page[User])

    def user(self, name: str) -> User:
        """One user."""
        return self.call("GET", at("users", name), User)

    def create_user(self, name: str, *, display_name: str = "", password: str | None = None) -> User:
        """Make a user, with no role yet."""
        body = {"name": name, "displayName": display_name, "password": password}
        return self.call("POST", at("users"), User, body)

    def change_user(
        self, name: str, *, display_name: str | None = None, disabled: bool | None = None
    ) -> User:
        """Change what is given."""
        body = {"displayName": display_name, "disabled": disabled}
        return self.call("PATCH", at("users", name), User, body)

    def remove_user(self, name: str) -> None:
        """Remove a user with tokens and roles."""
        self.call("DELETE", at("users", name), NONE)

    def set_password(self, name: str, password: str) -> None:
        """Give a user a password."""
        self.call("PUT", at("users", name, "password"), NONE, {"password": password})

    def grant_role(self, name: str, role: str, *, vault: str = "*") -> User:
        """Give a role on a vault, or on everything."""
        return self.call("PUT", at("users", name, "roles", vault, role), User)

    def withdraw_role(self, name: str, role: str, *, vault: str = "*") -> User:
        """Take a role."""
        return self.call("DELETE", at("users", name, "roles", vault, role), User)

    # what the sites have

    def things(
        self, kind: ThingKind, *, provider: str | None = None, name: str = "", gone: bool = False
    ) -> Iterator[Thing]:
        """What the sites I may see have of a kind, by name; limited to a gateway, to names with `name` in."""
        asked = {
            "limit": "1000",
            "provider": provider,
            "name": name or None,
            "gone": "true" if gone else None,
        }
        query = urlencode({key: text for key, text in asked.items() if text is not None})
        return self.pages(f"{at(kind)}?{query}", Page[Thing])

    def site(self, vault: str, provider: str) -> SiteStatus:
        """When a gateway's site was read."""
        return self.call(
            "GET", at("vaults", vault, "recoveryServicesProviders", provider, "inventory"), SiteStatus
        )

    def read_site(self, vault: str, provider: str) -> SiteRead:
        """Have a gateway's site read now."""
        return self.call(
            "POST", at("vaults", vault, "recoveryServicesProviders", provider, "inventory"), SiteRead
        )

    # jobs

    def jobs(
        self, *, states: Sequence[str] = (), kind: str | None = None, parent: str | None = None
    ) -> Iterator[Job]:
        """Jobs, youngest first. states: NotStarted, InProgress, Succeeded, Failed, Cancelled, Suspended.

        parent: the child jobs of this one instead, by its id.
        """
        asked = [("state", state) for state in states]
        if parent is not None:
            asked.append(("parent", parent))
        if kind is not None:
            asked.append(("kind", kind))
        query = f"?{urlencode(asked)}" if asked else ""
        return self.pages(at("jobs") + query, Page[Job])

    def job(self, job: str) -> JobDetail:
        """One job with its steps."""
        return self.call("GET", at("jobs", job), JobDetail)

    def job_log(self, job: str) -> Iterator[JobLogLine]:
        """What a job did, oldest first."""
        return self.pages(at("jobs", job, "log"), Page[JobLogLine])

    def cancel_job(self, job: str) -> Job:
        """Let the running step finish, then take back what was done."""
        return self.call("POST", at("jobs", job, "cancel"), Job)

    def retry_job(self, job: str) -> Job:
        """Go on with the step that failed."""
        return self.call("POST", at("jobs", job, "retry"), Job)

    def resume_job(self, job: str, answer: str) -> Job:
        """Answer a suspended job's question."""
        return self.call("POST", at("jobs", job, "resume"), Job, {"answer": answer})

    def restart_job(self, job: str) -> Job:
        """Do the same again as a new job, which is the answer."""
        return self.call("POST", at("jobs", job, "restart"), Job)

    def take_point(self, vault: str, provider: str, machine: str) -> Job:
        """Begin to take a recovery point of a protected machine, by its id."""
        place = ("vaults", vault, "recoveryServicesProviders", provider)
        return self.call("POST", at(*place, "machines", machine, "recoveryPoints"), Job)

    # the audit log

    def audit(self, *, actor: str | None = None, operation: str | None = None) -> Iterator[AuditEntry]:
        """What was done, oldest first."""
        asked = {"limit": "1000", "actor": actor, "operation": operation}
        query = urlencode({name: text for name, text in asked.items() if text is not None})
        return self.pages(f"{at('audit')}?{query}", Page[AuditEntry])

    def verify_audit(self, anchor: str | None = None) -> AuditVerified:
        """Check every row; the error names the first that does not hold. anchor: NUMBER:DIGEST."""
        query = "" if anchor is None else "?" + urlencode({"anchor": anchor})
        return self.call("GET", at("audit", "verification") + query, AuditVerified)

    def export_audit(self) -> Iterator[bytes]:
        """All rows as JSON lines, in pieces of any size."""
        return self._connection.lines(at("audit", "export"))


def _whose(user: str | None) -> tuple[str, ...]:
    return ("me",) if user is None else ("users", user)
