"""The ``secondsite`` command: which words lead to which function, and how a run ends.

Functions are named by path and imported when their command runs, so that start-up stays below 200 ms.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secondsite import __version__
from secondsite.base.errors import Outcome, SecondsiteError

if TYPE_CHECKING:
    from cyclopts import App

HELP = "secondsite keeps machines recoverable at a second site: protect, test, recover, rescue."

# In a group: what runs when no word of it follows.
DEFAULT = "*"
# command -> function; groups are dictionaries with their help text under ""
COMMANDS: dict[str, str | dict[str, str | dict[str, str]]] = {
    "inventory": "secondsite.cli.server.inventory:inventory",
    "protect": "secondsite.cli.gateway.protect:protect",
    "unprotect": "secondsite.cli.gateway.protect:unprotect",
    "pause": "secondsite.cli.gateway.pausing:pause",
    "resume": "secondsite.cli.gateway.pausing:resume",
    "resync": "secondsite.cli.gateway.pausing:resync",
    "point": "secondsite.cli.gateway.protect:point",
    "status": "secondsite.cli.gateway.status:status",
    "events": "secondsite.cli.gateway.status:events",
    "points": {
        "": "List recovery points and look inside them.",
        "list": "secondsite.cli.gateway.points:list_points",
        "hold": "secondsite.cli.gateway.retention:hold",
        "release": "secondsite.cli.gateway.retention:release",
        "export": "secondsite.cli.gateway.points:export",
        "exports": "secondsite.cli.gateway.points:exports",
        "end": "secondsite.cli.gateway.points:end",
        "dismiss": "secondsite.cli.gateway.points:dismiss",
    },
    "replica": {
        "": "Delete what a site keeps of a machine.",
        "delete": "secondsite.cli.gateway.replicas:delete",
        "deletions": "secondsite.cli.gateway.replicas:deletions",
    },
    "verify": "secondsite.cli.media.verify:verify",
    "retention": {
        "": "See which recovery points stay, and what that costs.",
        "show": "secondsite.cli.gateway.retention:show",
    },
    "test-failover": {
        "": "Boot a machine from a point as a test, without touching the original.",
        "start": "secondsite.cli.gateway.testfailover:start",
        "list": "secondsite.cli.gateway.testfailover:list_tests",
        "clean-up": "secondsite.cli.gateway.testfailover:clean_up",
        "apply-settings": "secondsite.cli.gateway.recovered:of_test",
    },
    "failover": {
        "": "Take a machine over at this site, and commit that, undo it or turn to another point.\n\n"
        "For example:\n\n    secondsite failover shop",
        DEFAULT: "secondsite.cli.gateway.failover:start",
        "apply-settings": "secondsite.cli.gateway.recovered:of_failover",
        "stop": "secondsite.cli.gateway.plannedstop:stop",
        "cancel-stop": "secondsite.cli.gateway.plannedstop:cancel_stop",
        "status": "secondsite.cli.gateway.failover:status",
        "change-point": "secondsite.cli.gateway.failover:change_point",
        "remove-former": "secondsite.cli.gateway.failoverformer:remove_former",
        "cancel-timer": "secondsite.cli.gateway.failoverformer:cancel_timer",
        "commit": "secondsite.cli.gateway.failover:commit",
        "rollback": "secondsite.cli.gateway.failover:rollback",
        "retire": "secondsite.cli.gateway.failoverkept:retire",
        "complete-migration": "secondsite.cli.gateway.failoverkept:complete_migration",
    },
    "check": "secondsite.cli.gateway.failover:check",
    "held": {
        "": "Decide about machines of this site that were taken over elsewhere.",
        "list": "secondsite.cli.gateway.held:list_held",
        "release": "secondsite.cli.gateway.held:release",
        "discard": "secondsite.cli.gateway.held:discard",
        "reverse": "secondsite.cli.gateway.heldreverse:reverse",
        "take-back": "secondsite.cli.gateway.heldreverse:take_back",
    },
    "rescue": {
        "": "Look into a store and boot from it, with nothing but the store and its key.",
        "list": "secondsite.cli.media.rescue:list_store",
        "export": "secondsite.cli.media.rescue:export",
        "boot": "secondsite.cli.media.rescue:boot",
        "watch": "secondsite.cli.media.rescue:watch",
        "clean-up": "secondsite.cli.media.rescue:clean_up",
    },
    "store": {
        "": "Check the stores that journals live in.",
        "check": "secondsite.cli.media.stores:check",
    },
    "segment": {
        "": "Look at segments, the files of a journal.",
        "dump": "secondsite.cli.media.segments:dump",
        "verify": "secondsite.cli.media.segments:verify",
    },
    "seed": {
        "": "Bring a machine's first copy to the other site on media.",
        "export": "secondsite.cli.gateway.seeding:export",
        "import": "secondsite.cli.gateway.seeding:import_",
        "status": "secondsite.cli.gateway.seeding:status",
        "cancel": "secondsite.cli.gateway.seeding:cancel",
    },
    "adopt": {
        "": "Begin a machine's first copy with what the other site has already.",
        "start": "secondsite.cli.gateway.adopt:start",
        "list": "secondsite.cli.gateway.adopt:list_adoptions",
        "status": "secondsite.cli.gateway.adopt:status",
        "cancel": "secondsite.cli.gateway.adopt:cancel",
    },
    "key": {
        "": "Make, check and rotate recovery keys.",
        "create": "secondsite.cli.media.keys:create",
        "show": "secondsite.cli.media.keys:show",
        "prove": "secondsite.cli.media.keys:prove",
        "renew": "secondsite.cli.media.keys:renew",
        "rotate": "secondsite.cli.media.keys:rotate",
        "retired": "secondsite.cli.media.keys:retired",
    },
    "certificate": {
        "": "Make the certificates with which gateways know each other.",
        "authority": "secondsite.cli.media.certificates:authority",
        "issue": "secondsite.cli.media.certificates:issue",
        "revoke": "secondsite.cli.media.certificates:revoke",
        "show": "secondsite.cli.media.certificates:show",
    },
    "server": {
        "": "Run the server until SIGTERM; back it up and bring it back.\n\n"
        "For example:\n\n    secondsite server --config /etc/secondsite/server.toml",
        DEFAULT: "secondsite.cli.server.role:server",
        "backup": "secondsite.cli.server.survival:backup",
        "backups": "secondsite.cli.server.survival:backups",
        "restore": "secondsite.cli.server.survival:restore",
        "authority": "secondsite.cli.server.authority:authority",
        "rotate-authority": "secondsite.cli.server.authority:rotate",
        "rebuild": "secondsite.cli.server.rebuild:rebuild",
        "standbys": "secondsite.cli.server.standby:standbys",
        "standby": {
            "": "See what a standby server holds, and forget one that is gone.",
            "status": "secondsite.cli.server.standby:status",
            "forget": "secondsite.cli.server.standby:forget",
        },
        "take-over": "secondsite.cli.server.standby:take_over",
        "hand-over": "secondsite.cli.server.standby:hand_over",
        "become-standby": "secondsite.cli.server.standby:become_standby",
        "oidc": {
            "": "Say which OIDC provider people log in at, and what its groups may do.",
            "set": "secondsite.cli.server.oidc:set_provider",
            "show": "secondsite.cli.server.oidc:show",
            "remove": "secondsite.cli.server.oidc:remove",
            "map": "secondsite.cli.server.oidc:map_group",
            "unmap": "secondsite.cli.server.oidc:unmap_group",
        },
    },
    "up": "secondsite.cli.up:up",
    "site": {
        "": "See what the sites of a server's gateways have.",
        "machines": "secondsite.cli.server.site:machines",
        "hosts": "secondsite.cli.server.site:hosts",
        "networks": "secondsite.cli.server.site:networks",
        "storage": "secondsite.cli.server.site:storage",
        "show": "secondsite.cli.server.site:show",
        "read": "secondsite.cli.server.site:read",
        "point": "secondsite.cli.server.site:point",
    },
    "cloud": {
        "": "Arrange the hosts of the sites into clouds, and say what the server may know of.",
        "sites": "secondsite.cli.server.cloud:sites",
        "list": "secondsite.cli.server.cloud:list_clouds",
        "show": "secondsite.cli.server.cloud:show",
        "create": "secondsite.cli.server.cloud:create",
        "rename": "secondsite.cli.server.cloud:rename",
        "publish": "secondsite.cli.server.cloud:publish",
        "unpublish": "secondsite.cli.server.cloud:unpublish",
        "delete": "secondsite.cli.server.cloud:delete",
        "machines": "secondsite.cli.server.cloud:machines",
    },
    "pair": {
        "": "Say which cloud's machines are recovered in which.",
        "create": "secondsite.cli.server.pair:create",
        "list": "secondsite.cli.server.pair:list_pairs",
        "show": "secondsite.cli.server.pair:show",
        "check": "secondsite.cli.server.pair:check",
        "picture": "secondsite.cli.server.pair:picture",
        "delete": "secondsite.cli.server.pair:delete",
    },
    "mapping": {
        "": "Say where networks and disks go in the cloud that machines are recovered in.",
        "network": "secondsite.cli.server.mapping:network",
        "storage": "secondsite.cli.server.mapping:storage",
    },
    "login": "secondsite.cli.server.login:login",
    "logout": "secondsite.cli.server.login:logout",
    "whoami": "secondsite.cli.server.login:whoami",
    "user": {
        "": "Say who may come in at the server, and what they may do.",
        "list": "secondsite.cli.server.users:list_users",
        "show": "secondsite.cli.server.users:show",
        "create": "secondsite.cli.server.users:create",
        "grant": "secondsite.cli.server.users:grant",
        "withdraw": "secondsite.cli.server.users:withdraw",
        "password": "secondsite.cli.server.users:password",
        "disable": "secondsite.cli.server.users:disable",
        "enable": "secondsite.cli.server.users:enable",
        "remove": "secondsite.cli.server.users:remove",
    },
    "session": {
        "": "See who is logged in from where, and end it.",
        "list": "secondsite.cli.server.sessions:list_sessions",
        "end": "secondsite.cli.server.sessions:end",
        "rules": "secondsite.cli.server.sessions:rules",
    },
    "token": {
        "": "Make and end the tokens that programs come in with.",
        "list": "secondsite.cli.server.tokens:list_tokens",
        "create": "secondsite.cli.server.tokens:create",
        "remove": "secondsite.cli.server.tokens:remove",
    },
    "event": {
        "": "See what happened at the server and its gateways.",
        "list": "secondsite.cli.server.events:list_events",
    },
    "alert": {
        "": "Say who is told of what happens, and see what was sent.",
        "list": "secondsite.cli.server.alerts:list_alerts",
        "channel": {
            "": "Say where alerts go.",
            "add": "secondsite.cli.server.alerts:add_channel",
            "list": "secondsite.cli.server.alerts:list_channels",
            "test": "secondsite.cli.server.alerts:send_test",
            "remove": "secondsite.cli.server.alerts:remove_channel",
        },
        "rule": {
            "": "Say which events are told.",
            "add": "secondsite.cli.server.alerts:add_rule",
            "list": "secondsite.cli.server.alerts:list_rules",
            "rest": "secondsite.cli.server.alerts:rest_rule",
            "remove": "secondsite.cli.server.alerts:remove_rule",
        },
    },
    "item": {
        "": "Protect machines through the server, test their failover, fail over, and change or end that.",
        "list": "secondsite.cli.items.items:list_items",
        "show": "secondsite.cli.items.items:show",
        "counts": "secondsite.cli.items.items:counts",
        "health": "secondsite.cli.items.health:health",
        "protect": "secondsite.cli.items.items:protect",
        "adopt": "secondsite.cli.items.items:adopt",
        "finalise": "secondsite.cli.items.verbs:finalise",
        "pause": "secondsite.cli.items.verbs:pause",
        "resume": "secondsite.cli.items.verbs:resume",
        "resync": "secondsite.cli.items.verbs:resync",
        "point": "secondsite.cli.items.verbs:point",
        "points": "secondsite.cli.items.tests:points",
        "run": "secondsite.cli.items.groups:run",
        "reprotect": "secondsite.cli.items.returns:reprotect",
        "failback": "secondsite.cli.items.returns:fail_back",
        "complete-migration": "secondsite.cli.items.returns:complete_migration",
        "forget": "secondsite.cli.items.forget:forget",
        "test-failover": "secondsite.cli.items.tests:boot_test",
        "clean-up": "secondsite.cli.items.tests:clean_up",
        "settings": {
            "": "Say what the recovered machine is to be: its size, type, networks and addresses.",
            "show": "secondsite.cli.items.settings:show",
            "set": "secondsite.cli.items.settings:change",
            "clear": "secondsite.cli.items.settings:clear",
        },
        "checks": "secondsite.cli.items.failover:look",
        "failover": "secondsite.cli.items.failover:fail_over",
        "planned-failover": "secondsite.cli.items.move:move",
        "change-point": "secondsite.cli.items.failover:change_point",
        "commit": "secondsite.cli.items.failover:commit",
        "roll-back": "secondsite.cli.items.failover:roll_back",
        "held": "secondsite.cli.items.held:list_held",
        "held-release": "secondsite.cli.items.held:release",
        "held-discard": "secondsite.cli.items.held:discard",
        "disks": "secondsite.cli.items.changes:disks",
        "policy": "secondsite.cli.items.changes:policy",
        "mapping": "secondsite.cli.items.changes:mapping",
        "disable": "secondsite.cli.items.changes:disable",
    },
    "job": {
        "": "Follow and steer what the server does.",
        "list": "secondsite.cli.server.jobs:list_jobs",
        "show": "secondsite.cli.server.jobs:show",
        "log": "secondsite.cli.server.jobs:log",
        "follow": "secondsite.cli.server.jobs:follow",
        "cancel": "secondsite.cli.server.jobs:cancel",
        "retry": "secondsite.cli.server.jobs:retry",
        "resume": "secondsite.cli.server.jobs:resume",
        "restart": "secondsite.cli.server.jobs:restart",
        "approvals": "secondsite.cli.server.approvals:list_approvals",
        "approve": "secondsite.cli.server.approvals:approve",
        "reject": "secondsite.cli.server.approvals:reject",
    },
    "audit": {
        "": "See who did what, and that nobody changed the log of it.",
        "list": "secondsite.cli.server.audit:list_audit",
        "verify": "secondsite.cli.server.audit:verify",
        "export": "secondsite.cli.server.audit:export",
    },
    "vault": {
        "": "Make vaults, and the keys with which gateways enter them.",
        "list": "secondsite.cli.server.vaults:list_vaults",
        "create": "secondsite.cli.server.vaults:create",
        "show": "secondsite.cli.server.vaults:show",
        "rename": "secondsite.cli.server.vaults:rename",
        "approvals": "secondsite.cli.server.approvals:demands",
        "delete": "secondsite.cli.server.vaults:delete",
        "key": "secondsite.cli.server.vaults:key",
        "keys": "secondsite.cli.server.vaults:keys",
        "revoke-key": "secondsite.cli.server.vaults:revoke_key",
    },
    "policy": {
        "": "Say how often machines are copied, what is kept of them, and what that may cost.",
        "list": "secondsite.cli.server.policies:list_policies",
        "show": "secondsite.cli.server.policies:show",
        "create": "secondsite.cli.server.policies:create",
        "change": "secondsite.cli.server.policies:change",
        "copy": "secondsite.cli.server.policies:copy",
        "delete": "secondsite.cli.server.policies:delete",
        "presets": "secondsite.cli.server.policies:presets",
        "estimate": "secondsite.cli.server.policies:estimate",
    },
    "gateway": {
        "": "Run the gateway of a site until SIGTERM; enrol it, see and manage those a server knows.\n\n"
        "For example:\n\n    secondsite gateway --config /etc/secondsite/gateway.toml",
        DEFAULT: "secondsite.cli.gateway.daemons:gateway",
        "enrol": "secondsite.cli.server.enrol:enrol",
        "check-port": "secondsite.cli.gateway.ports:check_port",
        "server": "secondsite.cli.server.survival:move",
        "list": "secondsite.cli.server.enrol:list_gateways",
        "show": "secondsite.cli.server.enrol:show",
        "rename": "secondsite.cli.server.enrol:rename",
        "refresh": "secondsite.cli.server.enrol:refresh",
        "check": "secondsite.cli.server.gatewaycheck:check",
        "proxy": "secondsite.cli.server.outbound:proxy",
        "outbound": "secondsite.cli.server.outbound:outbound",
        "prove-key": "secondsite.cli.items.changes:prove_key",
        "revoke": "secondsite.cli.server.enrol:revoke",
        "unregister": "secondsite.cli.server.enrol:unregister",
        "remove": "secondsite.cli.server.enrol:remove",
    },
    "guard": "secondsite.cli.gateway.daemons:guard",
    "lab": {
        "": "Two sites and a guest on this one machine, to try things on.",
        "up": "secondsite.cli.lab:up",
        "down": "secondsite.cli.lab:down",
        "status": "secondsite.cli.lab:status",
        "run": "secondsite.cli.lab:run",
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

    def fill(into: App, words: Mapping[str, Any]) -> None:
        for word, target in words.items():
            if word == DEFAULT:
                into.default(imported(target))
            elif isinstance(target, str) and word:
                into.command(target_of(target), name=word)
            elif word:
                group = App(name=word, help=target[""])
                fill(group, target)
                into.command(group)

    fill(app, COMMANDS)
    return app


def imported(path: str) -> Callable[..., object]:
    """The function at ``module:function``."""
    module, _, function = path.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


def _run(arguments: Sequence[str]) -> int:
    from cyclopts import CycloptsError

    from secondsite.cli.common.output import exit_code, print_error

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
    def below(words: Mapping[str, Any]) -> set[str]:
        groups = [target for target in words.values() if isinstance(target, dict)]
        return set(words).union(*(below(group) for group in groups)) - {DEFAULT}

    return below(COMMANDS)


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
