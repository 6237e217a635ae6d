"""Options that say what a recovered machine is to be: shared by the commands of gateways and servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.base.files import read_limited
from secondsite.base.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secondsite.model.outlook import Outlook
    from secondsite.model.recovered import RecoveredSettings

Bus = Literal["virtio", "scsi", "sata", "ide"]
Several = Annotated[list[str] | None, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """What the machine is to be there; what is not given stays as its point has it."""

    settings: Annotated[Path | None, Parameter(name="--settings")] = None
    """A file with all of it as JSON (see docs/recovered-machine.md); the options below are put over it."""
    cpus: int | None = None
    """Number of processors."""
    memory: str | None = None
    """Memory, like 4GiB or 512MiB."""
    firmware: Literal["bios", "uefi"] | None = None
    """What starts it."""
    machine_type: str | None = None
    """As the host names it, like q35 or pc-q35-7.2."""
    disk_bus: Bus | None = None
    """Of all disks."""
    nic: Several = None
    """An adapter, by its place from 1 or its hardware address, and what is set for it:
    N,network=NAME,mac=new,address=ADDRESS/PREFIX,gateway=ADDRESS or N,dhcp; may be given several times."""
    boot: Several = None
    """A disk's name or an adapter to boot from, first one first; may be given several times."""
    injection: Literal["cloud-init", "agent", "drive", "none"] | None = None
    """How addresses come into the guest."""
    drive_bus: Bus | None = None
    """Of the drive the guest reads them from, where another one than is chosen."""
    dns: Several = None
    """A name server's address; may be given several times."""
    search: Several = None
    """A domain in which names are looked for; may be given several times."""
    host: Several = None
    """ADDRESS=NAME,NAME: a line of the hosts file; may be given several times."""

    def build(self, *, name: str | None = None) -> RecoveredSettings | None:
        """As they go over the wire; None: nothing was given. Raises InvalidInput."""
        from secondsite.model import recovered

        value: dict[str, Any] = {}
        if self.settings is not None:
            value = recovered.to_object(_from_file(self.settings))
        given = {
            "name": name,
            "cpus": self.cpus,
            "memoryBytes": None if self.memory is None else parse_bytes(self.memory),
            "firmware": self.firmware,
            "machineType": self.machine_type,
            "diskBus": self.disk_bus,
            "nics": None if self.nic is None else [_nic(text) for text in self.nic],
            "bootOrder": self.boot,
            "injection": self.injection,
            "driveBus": self.drive_bus,
            "dns": self.dns,
            "search": self.search,
            "hosts": None if self.host is None else [_host(text) for text in self.host],
        }
        value |= {key: one for key, one in given.items() if one is not None}
        return recovered.from_object(value) if value else None


NO_MACHINE = Machine()


def _from_file(path: Path) -> RecoveredSettings:
    from secondsite.model.recovered import SETTINGS_BYTES_MAX, decode

    try:
        return decode(read_limited(path, size_bytes_max=SETTINGS_BYTES_MAX), f"the file {path}")
    except OSError as error:
        raise InvalidInput(what=f"the file {path}", why=error.strerror or str(error)) from None


def _nic(text: str) -> dict[str, Any]:
    """``1,network=lan,mac=new,address=192.0.2.7/24,gateway=192.0.2.1`` or ``1,dhcp``."""
    nic, *words = text.split(",")
    found: dict[str, Any] = {"nic": nic.strip()}
    addresses, gateways = [], []
    for word in words:
        key, equals, value = word.strip().partition("=")
        if key in ("dhcp", "keep") and not equals:
            found["addressing"] = key
        elif key in ("network", "mac") and value:
            found[key] = value
        elif key == "address" and value:
            addresses.append(value)
        elif key == "gateway" and value:
            gateways.append(value)
        else:
            why = f"{word!r} is none of network=, mac=, address=, gateway=, dhcp and keep"
            raise InvalidInput(what=f"--nic {text!r}", why=why)
    if addresses:
        found |= {"addressing": found.get("addressing", "static"), "addresses": addresses}
    if gateways:
        found["gateways"] = gateways
    return found


def _host(text: str) -> dict[str, Any]:
    address, equals, names = text.partition("=")
    if not equals:
        raise InvalidInput(what=f"--host {text!r}", why="it is not of the form ADDRESS=NAME,NAME")
    return {"address": address.strip(), "names": [name.strip() for name in names.split(",")]}


def print_outlook(seen: Outlook) -> None:
    """What it would be, a line each."""
    for what, value in outlook_lines(seen):
        print(f"  {what}: {value}")


def outlook_lines(seen: Outlook) -> Iterator[tuple[str, str]]:
    """What it would be, in words."""
    yield "name", seen.name
    yield "size", f"{seen.cpus} processors, {format_bytes(seen.memory_bytes)}"
    buses = f", disks on {', '.join(seen.disk_buses)}" if seen.disk_buses else ""
    yield "type", f"{seen.machine_type}, {seen.firmware}{buses}"
    for nic in seen.nics:
        address = ", ".join(nic.addresses) or {"keep": "as the guest has it", "dhcp": "by DHCP"}.get(
            nic.addressing.value, ""
        )
        mac = "a new hardware address" if nic.mac == "new" else nic.mac
        yield f"adapter {nic.place}", f"{nic.network or 'attached to nothing'}, {mac}, {address}"
    if seen.drive_bus or seen.injection.value != "none":
        yield (
            "addresses by",
            seen.injection.value + (f" (drive on {seen.drive_bus})" if seen.drive_bus else ""),
        )
    if seen.home:
        yield "definition", "the one it had at this host"


def settings_lines(settings: RecoveredSettings) -> Iterator[tuple[str, str]]:
    """What is set, in words; what is not is left out."""
    from secondsite.model import recovered

    for key, value in recovered.to_object(settings).items():
        if key == "nics":
            for nic in value:
                words = [
                    f"{name} {one}"
                    for name, one in nic.items()
                    if name not in ("nic", "addresses", "gateways")
                ]
                words += [*nic.get("addresses", []), *(f"gateway {one}" for one in nic.get("gateways", []))]
                yield f"adapter {nic['nic']}", ", ".join(words)
        elif key == "hosts":
            for entry in value:
                yield f"host {entry['address']}", " ".join(entry["names"])
        elif key == "memoryBytes":
            yield "memory", format_bytes(value)
        else:
            yield key, ", ".join(value) if isinstance(value, list) else str(value)
