"""The ``secondsite`` command: which words lead to which function, and how a run ends.

Functions are named by path and imported when their command runs, so that start-up stays below 200 ms.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secondsite import __version__
from secondsite.base.errors import Outcome, SecondsiteError

if TYPE_CHECKING:
    from cyclopts import App

HELP = "secondsite keeps machines recoverable at a second site: protect, test, recover, rescue."

# In a group: what runs when no word of it follows.
DEFAULT = "*"
# command -> function; groups are dictionaries with their help text under ""
COMMANDS: dict[str, str | dict[str, str]] = {
    "inventory": "secondsite.cli.inventory:inventory",
    "protect": "secondsite.cli.protect:protect",
    "unprotect": "secondsite.cli.protect:unprotect",
    "point": "secondsite.cli.protect:point",
    "status": "secondsite.cli.status:status",
    "events": "secondsite.cli.status:events",
    "points": {
        "": "List recovery points and look inside them.",
        "list": "secondsite.cli.points:list_points",
        "hold": "secondsite.cli.retention:hold",
        "release": "secondsite.cli.retention:release",
        "export": "secondsite.cli.points:export",
        "exports": "secondsite.cli.points:exports",
        "end": "secondsite.cli.points:end",
        "dismiss": "secondsite.cli.points:dismiss",
    },
    "verify": "secondsite.cli.verify:verify",
    "retention": {
        "": "See which recovery points stay, and what that costs.",
        "show": "secondsite.cli.retention:show",
    },
    "test-failover": {
        "": "Boot a machine from a point as a test, without touching the original.",
        "start": "secondsite.cli.testfailover:start",
        "list": "secondsite.cli.testfailover:list_tests",
        "clean-up": "secondsite.cli.testfailover:clean_up",
    },
    "rescue": {
        "": "Look into a store and boot from it, with nothing but the store and its key.",
        "list": "secondsite.cli.rescue:list_store",
        "export": "secondsite.cli.rescue:export",
        "boot": "secondsite.cli.rescue:boot",
        "watch": "secondsite.cli.rescue:watch",
        "clean-up": "secondsite.cli.rescue:clean_up",
    },
    "store": {
        "": "Check the stores that journals live in.",
        "check": "secondsite.cli.stores:check",
    },
    "segment": {
        "": "Look at segments, the files of a journal.",
        "dump": "secondsite.cli.segments:dump",
        "verify": "secondsite.cli.segments:verify",
    },
    "seed": {
        "": "Bring a machine's first copy to the other site on media.",
        "export": "secondsite.cli.seeding:export",
        "import": "secondsite.cli.seeding:import_",
        "status": "secondsite.cli.seeding:status",
        "cancel": "secondsite.cli.seeding:cancel",
    },
    "adopt": {
        "": "Begin a machine's first copy with what the other site has already.",
        "start": "secondsite.cli.adopt:start",
        "list": "secondsite.cli.adopt:list_adoptions",
        "status": "secondsite.cli.adopt:status",
        "cancel": "secondsite.cli.adopt:cancel",
    },
    "key": {
        "": "Make, check and rotate recovery keys.",
        "create": "secondsite.cli.keys:create",
        "show": "secondsite.cli.keys:show",
        "prove": "secondsite.cli.keys:prove",
        "renew": "secondsite.cli.keys:renew",
        "rotate": "secondsite.cli.keys:rotate",
        "retired": "secondsite.cli.keys:retired",
    },
    "certificate": {
        "": "Make the certificates with which gateways know each other.",
        "authority": "secondsite.cli.certificates:authority",
        "issue": "secondsite.cli.certificates:issue",
        "revoke": "secondsite.cli.certificates:revoke",
        "show": "secondsite.cli.certificates:show",
    },
    "server": "secondsite.cli.server:server",
    "site": {
        "": "See what the sites of a server's gateways have.",
        "machines": "secondsite.cli.site:machines",
        "hosts": "secondsite.cli.site:hosts",
        "networks": "secondsite.cli.site:networks",
        "storage": "secondsite.cli.site:storage",
        "show": "secondsite.cli.site:show",
        "read": "secondsite.cli.site:read",
        "point": "secondsite.cli.site:point",
    },
    "login": "secondsite.cli.login:login",
    "logout": "secondsite.cli.login:logout",
    "whoami": "secondsite.cli.login:whoami",
    "user": {
        "": "Say who may come in at the server, and what they may do.",
        "list": "secondsite.cli.users:list_users",
        "show": "secondsite.cli.users:show",
        "create": "secondsite.cli.users:create",
        "grant": "secondsite.cli.users:grant",
        "withdraw": "secondsite.cli.users:withdraw",
        "password": "secondsite.cli.users:password",
        "disable": "secondsite.cli.users:disable",
        "enable": "secondsite.cli.users:enable",
        "remove": "secondsite.cli.users:remove",
    },
    "token": {
        "": "Make and end the tokens that programs come in with.",
        "list": "secondsite.cli.tokens:list_tokens",
        "create": "secondsite.cli.tokens:create",
        "remove": "secondsite.cli.tokens:remove",
    },
    "job": {
        "": "Follow and steer what the server does.",
        "list": "secondsite.cli.jobs:list_jobs",
        "show": "secondsite.cli.jobs:show",
        "log": "secondsite.cli.jobs:log",
        "follow": "secondsite.cli.jobs:follow",
        "cancel": "secondsite.cli.jobs:cancel",
        "retry": "secondsite.cli.jobs:retry",
        "resume": "secondsite.cli.jobs:resume",
        "restart": "secondsite.cli.jobs:restart",
    },
    "audit": {
        "": "See who did what, and that nobody changed the log of it.",
        "list": "secondsite.cli.audit:list_audit",
        "verify": "secondsite.cli.audit:verify",
        "export": "secondsite.cli.audit:export",
    },
    "vault": {
        "": "Make vaults, and the keys with which gateways enter them.",
        "list": "secondsite.cli.vaults:list_vaults",
        "create": "secondsite.cli.vaults:create",
        "show": "secondsite.cli.vaults:show",
        "rename": "secondsite.cli.vaults:rename",
        "delete": "secondsite.cli.vaults:delete",
        "key": "secondsite.cli.vaults:key",
        "keys": "secondsite.cli.vaults:keys",
        "revoke-key": "secondsite.cli.vaults:revoke_key",
    },
    "gateway": {
        "": "Run the gateway of a site until SIGTERM; enrol it, see and manage those a server knows.\n\n"
        "For example:\n\n    secondsite gateway --config /etc/secondsite/gateway.toml",
        DEFAULT: "secondsite.cli.daemons:gateway",
        "enrol": "secondsite.cli.enrol:enrol",
        "list": "secondsite.cli.enrol:list_gateways",
        "show": "secondsite.cli.enrol:show",
        "rename": "secondsite.cli.enrol:rename",
        "refresh": "secondsite.cli.enrol:refresh",
        "revoke": "secondsite.cli.enrol:revoke",
        "unregister": "secondsite.cli.enrol:unregister",
        "remove": "secondsite.cli.enrol:remove",
    },
    "guard": "secondsite.cli.daemons:guard",
    "lab": {
        "": "Two sites and a guest on this one machine, to try things on.",
        "up": "secondsite.cli.lab:up",
        "down": "secondsite.cli.lab:down",
        "status": "secondsite.cli.lab:status",
        "demo": "secondsite.cli.lab:demo",
    },
    "completion": "secondsite.cli.completion:completion",
}


class UsageWrong(SecondsiteError):
    """The command line does not parse."""

    code = "cli.usage"
    outcome = Outcome.USAGE
    happened = "The command was not understood: {why}"
    cause = "An option or argument is missing, mistyped or not one of this command."
    action = "See `{help}`; nothing was done."


def build_app(*, plain: bool = False, eager: bool = False) -> App:
    """The whole command tree.

    plain: without frames and colours, for documents.
    eager: import every function now, for the summaries in lists of commands.
    """
    from cyclopts import App

    def target_of(path: str) -> str | Callable[..., object]:
        if not eager:
            return path
        return imported(path)

    app = App(
        name="secondsite",
        help=HELP,
        help_format="markdown",
        help_formatter="plain" if plain else "default",
        version=__version__,
    )
    for name, target in COMMANDS.items():
        if isinstance(target, str):
            app.command(target_of(target), name=name)
            continue
        group = App(name=name, help=target[""])
        for word, path in target.items():
            if word == DEFAULT:
                group.default(imported(path))
            elif word:
                group.command(target_of(path), name=word)
        app.command(group)
    return app


def imported(path: str) -> Callable[..., object]:
    """The function at ``module:function``."""
    module, _, function = path.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


def _run(arguments: Sequence[str]) -> int:
    from cyclopts import CycloptsError

    from secondsite.cli.output import exit_code, print_error

    arguments = move_options(arguments)
    app = build_app(eager=not arguments or "--help" in arguments or "-h" in arguments)
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        words = []
        for word in arguments:
            if word.startswith("-") or word not in _words():
                break
            words.append(word)
        wrong = UsageWrong(why=str(error).strip(), help=" ".join(["secondsite", *words, "--help"]))
        print_error(wrong)
        return exit_code(wrong)
    except SecondsiteError as error:
        print_error(error)
        return exit_code(error)
    return result if isinstance(result, int) else int(Outcome.OK)


def move_options(arguments: Sequence[str]) -> list[str]:
    """``GROUP --option VALUE WORD ...`` as ``GROUP WORD --option VALUE ...``: options may come first.

    Only for groups; every option before the word takes a value, or holds one after ``=``.
    """
    words = list(arguments)
    group = COMMANDS.get(words[0]) if words else None
    at = 1
    while isinstance(group, dict) and at < len(words) and words[at].startswith("--"):
        if words[at] in ("--help", "--version"):
            return words
        at += 1 if "=" in words[at] else 2
    if isinstance(group, dict) and 1 < at < len(words) and words[at] in group:
        words.insert(1, words.pop(at))
    return words


def _words() -> set[str]:
    words = set(COMMANDS)
    for target in COMMANDS.values():
        if isinstance(target, dict):
            words |= set(target) - {DEFAULT}
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (`secondsite.base.errors.Outcome`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if list(arguments) == ["--version"]:
            print(__version__)
            return int(Outcome.OK)
        return _run(arguments)
    except KeyboardInterrupt:
        return int(Outcome.CANCELLED)
    except BrokenPipeError:
        # the reader of our output (head, less) went away: not an error; keep the interpreter's exit quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Outcome.OK)
