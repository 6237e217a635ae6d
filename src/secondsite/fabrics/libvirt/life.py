"""Power of machines, and what is seen of a recovered one from outside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import libvirt

from secondsite.fabrics.base import Ended, Life, LiveNic, Recovered, Shape
from secondsite.fabrics.libvirt import domxml, outlook, overlays
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState

# Why a domain is shut off. Every other reason, and none after a restart of its host, says that it was lost.
_ORDERLY = (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED)


def lookup(connection: Any, machine: MachineId) -> Any:
    """The domain, or None."""
    try:
        return connection.lookupByUUIDString(machine)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def run(connection: Any, recovered: Recovered) -> bool:
    """See `Fabric.run_recovered`."""
    domain = lookup(connection, recovered.id)
    if domain is None:
        return False
    if domain.isActive():
        return True
    root = domxml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    variables = domxml.nvram_path(root)
    if variables is not None and not Path(variables).is_file():
        return False
    if not all(overlays.is_made(path) for path in recovered.overlays):
        return False
    drives = [disk for disk in root.findall("devices/disk") if domxml.is_settings_drive(disk)]
    if not all(
        Path(source.get("file", "")).is_file() for disk in drives for source in disk.findall("source")
    ):
        return False
    if not overlays.stand_on_exports(connection, domain):
        return False
    domain.create()
    return True


def of(connection: Any, recovered: Recovered) -> Life:
    """See `Fabric.life_of`."""
    domain = lookup(connection, recovered.id)
    log = Path(recovered.console_log) if recovered.console_log else None
    console = False
    with contextlib.suppress(OSError):
        console = log is not None and log.stat().st_size > 0
    if domain is None or not domain.isActive():
        ended = None if domain is None else Ended.IN_ORDER if domain.state()[1] in _ORDERLY else Ended.LOST
        return Life(power=PowerState.OFF, console=console, agent=False, ended=ended)
    # QEMU tells when the guest opens the port; asking the agent itself could wait for a guest that hangs
    agents = domxml.parse(domain.XMLDesc(0)).findall(
        f"devices/channel/target[@name='{domxml.AGENT_CHANNEL}'][@state='connected']"
    )
    running = domain.state()[0] in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED)
    power = PowerState.RUNNING if running else PowerState.PAUSED
    return Life(power=power, console=console, agent=bool(agents))


def shape(connection: Any, recovered: Recovered) -> Shape | None:
    """See `Fabric.shape_of`."""
    domain = lookup(connection, recovered.id)
    if domain is None or not domain.isActive():
        return None
    root = domxml.parse(domain.XMLDesc(0))
    nics = [
        LiveNic(
            mac=domxml.nic_mac(interface),
            network=domxml.nic_network(interface) or "",
            up=all(link.get("state") != "down" for link in interface.findall("link")),
        )
        for interface in root.findall("devices/interface")
    ]
    return Shape(cpus=outlook.cpus(root), memory_bytes=outlook.memory_bytes(root), nics=nics)


def ask_to_shut_down(domain: Any, *, agent: bool) -> None:
    """See `Fabric.ask_to_shut_down`."""
    if not domain.isActive():
        return
    if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()  # a paused guest hears nothing
    flags = libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT if agent else libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
    domain.shutdownFlags(flags)


def power_off(domain: Any) -> None:
    """See `Fabric.power_off`. QEMU is asked to end (SIGTERM), which stores its bitmaps; never killed here."""
    try:
        domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def hold_open(domain: Any) -> None:
    """See `Fabric.hold_open`. QEMU opens the images with their bitmaps; its processors stand still."""
    if not domain.isActive():
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
