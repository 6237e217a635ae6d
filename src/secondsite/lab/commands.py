"""``secondsite lab up``, ``down`` and ``status``: the demo's two sites and guest, to play with."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import libvirt
from rich.console import Console

from secondsite.base.errors import Outcome
from secondsite.lab.errors import LabAbsent
from secondsite.lab.gateways import Gateways
from secondsite.lab.guest import build_boot_files
from secondsite.lab.libvirtd import quiet_libvirt
from secondsite.lab.machine import GuestSpec, create_guest
from secondsite.lab.server import VAULT, LabServer
from secondsite.lab.signals import interruptible, uninterrupted
from secondsite.lab.sites import Sites, open_sites
from secondsite.lab.witness import CHANNELS


def up(root: Path) -> int:
    """Make the sites, start a server, both gateways and a guest under load, and say what can be done."""
    console = Console()
    sites = Sites(root.absolute())
    with interruptible(), contextlib.ExitStack() as undo:
        boot = build_boot_files()
        sites.up(attached=False)
        undo.callback(sites.down)
        with console.status("making a guest with a workload"):
            guest = create_guest(sites.a, boot, GuestSpec())
            guest.start()
            guest.wait_ready()
        # it sends the tokens without which the workload does not write
        witness: list[str | Path] = [sys.executable, "-m", "secondsite.lab.witness"]
        sites.a.spawn("witness", [*witness, sites.a.directory / CHANNELS])
        with console.status("starting the server and the gateways"):
            server = LabServer(sites)
            server.start()
            gateways = Gateways(sites, server)
            gateways.prepare()
            for site in sites.sites:
                gateways.start(site)
        undo.pop_all()
    _print_hints(console, sites, guest.name)
    return int(Outcome.OK)


def down(root: Path) -> int:
    """Remove the lab; there being none is fine."""
    with uninterrupted():
        Sites(root.absolute()).down()
    Console().print(f"Nothing of the lab is left in {root}.", highlight=False, soft_wrap=True)
    return int(Outcome.OK)


def run(arguments: Sequence[str], root: Path) -> int:
    """Run a command at site B, logged in at the lab's server; its exit code. Raises LabAbsent."""
    with interruptible():
        return LabServer(open_sites(root.absolute())).show(arguments)


def status(*, as_json: bool, root: Path) -> int:
    """Say what runs; the exit code is NOT_FOUND when there is no lab."""
    console = Console()
    quiet_libvirt()
    try:
        sites = open_sites(root.absolute())
    except LabAbsent:
        if as_json:
            sys.stdout.write(json.dumps({"root": str(root), "running": False}) + "\n")
        else:
            console.print("There is no lab; `secondsite lab up` starts one.")
        return int(Outcome.NOT_FOUND)
    gateways = Gateways(sites)
    found = {
        site.name: {
            "libvirt": site.uri,
            "machines": _machines(site.uri),
            "gateway": str(gateways.control_socket(site)),
            "gatewayAnswers": gateways.answers(site),
        }
        for site in sites.sites
    }
    if as_json:
        sys.stdout.write(json.dumps({"root": str(root), "running": True, "sites": found}, indent=2) + "\n")
        return int(Outcome.OK)
    for name, entry in found.items():
        answers = "answers" if entry["gatewayAnswers"] else "does not answer"
        console.print(f"[bold]site {name}[/]  gateway {answers} at {entry['gateway']}", soft_wrap=True)
        console.print(f"        libvirt {entry['libvirt']}", soft_wrap=True)
        machines = entry["machines"]
        console.print(f"        machines: {', '.join(machines) if isinstance(machines, list) else machines}")
    return int(Outcome.OK)


def _machines(uri: str) -> list[str] | str:
    try:
        with contextlib.closing(libvirt.open(uri)) as connection:
            domains = connection.listAllDomains()
            return [f"{each.name()} ({'running' if each.isActive() else 'off'})" for each in domains]
    except libvirt.libvirtError as error:
        return f"libvirt does not answer: {error}"


def _print_hints(console: Console, sites: Sites, machine: str) -> None:
    a, b = sites.sites
    gateways = Gateways(sites)
    command = "./run secondsite" if Path("run").is_file() else "secondsite"
    console.print(
        f"""
Two sites are up, and the guest [bold]{machine}[/] writes at site A. A server runs at site B; `lab run`
runs a command there, logged in as its owner:

  {command} lab run site machines --of {gateways.name(a)}
  {command} lab run gateway prove-key {gateways.name(a)} --recovery-key {gateways.recovery_key}
  {command} lab run item protect {VAULT} {machine} --to {gateways.name(b)} \\
      --network {a.network}={b.network} --pool {a.pool}={b.pool}
  {command} lab run item list
  {command} lab run item point {VAULT} {machine}
  {command} lab run item test-failover {VAULT} {machine}
  {command} lab run item clean-up {VAULT} {machine} --notes "it boots"
  {command} lab run item disable {VAULT} {machine} --delete-replica

Each site's gateway answers by itself, too:

  export A={gateways.control_socket(a)}
  export B={gateways.control_socket(b)}

  {command} status --watch --gateway $A
  {command} points list {machine} --gateway $B

  virsh -c '{a.uri}' list
  {command} lab down        removes all of it
""",
        soft_wrap=True,
        highlight=False,
    )
