"""The drive a recovered machine reads its addresses from: ISO 9660, made in memory.

With cloud-init it is a NoCloud seed, label ``cidata``, as described at
https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html. With the others it has the label
``SECONDSITE`` and holds `apply.sh` and what that reads. YAML is a superset of JSON: cloud-init is given JSON,
which needs no writer of our own.
"""

from __future__ import annotations

import io
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycdlib

from secondsite.model.recovered import Addressing, Injection, NicSettings, RecoveredSettings

SEED_LABEL, SCRIPT_LABEL = "cidata", "SECONDSITE"
SCRIPT, SETTINGS, UNIT = "apply.sh", "settings", "secondsite-recovered.service"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Adapter:
    """An adapter as the recovered machine has it, and what was set for it."""

    mac: str
    settings: NicSettings


def build(settings: RecoveredSettings, adapters: Sequence[Adapter], *, instance: str) -> bytes:
    """The whole drive. instance: another one for each machine that is made; cloud-init acts once for each."""
    if settings.injection is Injection.CLOUD_INIT:
        return _iso(SEED_LABEL, seed_files(settings, adapters, instance=instance))
    return _iso(SCRIPT_LABEL, script_files(settings, adapters, instance=instance))


def seed_files(
    settings: RecoveredSettings, adapters: Sequence[Adapter], *, instance: str
) -> Mapping[str, bytes]:
    """A NoCloud seed: network configuration of version 2, and user data that changes nothing else.

    A new instance is what makes cloud-init look at the network again. Its modules would then treat the
    machine as a new one (host keys, users, packages, disks), so that none is run but the one that is needed;
    a distribution that runs some all the same is told that they stay.
    """
    user: dict[str, object] = {
        "cloud_init_modules": ["write-files"] if settings.hosts else [],
        "cloud_config_modules": [],
        "cloud_final_modules": [],
        "preserve_hostname": True,
        "manage_etc_hosts": False,
        "ssh_deletekeys": False,
        "disable_root": False,
        "resize_rootfs": False,
        "growpart": {"mode": "off"},
        "package_update": False,
        "package_upgrade": False,
    }
    if settings.hosts:
        # once for each instance; a second line for the same name does no harm
        lines = "".join(f"{entry.address} {' '.join(entry.names)}\n" for entry in settings.hosts)
        user["write_files"] = [{"path": "/etc/hosts", "append": True, "content": lines}]
    return {
        "meta-data": json.dumps({"instance-id": f"secondsite-{instance}"}).encode() + b"\n",
        "user-data": b"#cloud-config\n" + json.dumps(user, indent=1).encode() + b"\n",
        "network-config": json.dumps(network_config(settings, adapters), indent=1).encode() + b"\n",
    }


def network_config(settings: RecoveredSettings, adapters: Sequence[Adapter]) -> dict[str, object]:
    """Version 2, one entry an adapter that is set, found by its hardware address."""
    ethernets: dict[str, object] = {}
    for number, adapter in enumerate(adapters):
        nic = adapter.settings
        if nic.addressing is Addressing.KEEP:
            continue
        entry: dict[str, object] = {"match": {"macaddress": adapter.mac}}
        if nic.addressing is Addressing.DHCP:
            entry |= {"dhcp4": True, "dhcp6": False}
        else:
            entry |= {"dhcp4": False, "dhcp6": False, "addresses": list(nic.addresses)}
            # Not as a route to ::/0, of which cloud-init 22.4 (Debian 12) makes one to ::/64 for all but
            # netplan, and among those of IPv4 for NetworkManager; netplan takes these, too.
            for gateway in nic.gateways:
                entry[f"gateway{ipaddress.ip_address(gateway).version}"] = gateway
        if settings.dns or settings.search:
            entry["nameservers"] = {"addresses": list(settings.dns), "search": list(settings.search)}
        ethernets[f"secondsite{number}"] = entry
    return {"version": 2, "ethernets": ethernets}


def script_files(
    settings: RecoveredSettings, adapters: Sequence[Adapter], *, instance: str
) -> Mapping[str, bytes]:
    """The script, what it reads, and the unit that runs it at each start."""
    return {
        SETTINGS: settings_file(settings, adapters, instance=instance).encode(),
        SCRIPT: (_HERE / SCRIPT).read_bytes(),
        UNIT: (_HERE / UNIT).read_bytes(),
    }


def settings_file(settings: RecoveredSettings, adapters: Sequence[Adapter], *, instance: str) -> str:
    """One thing a line, words parted by a space; the model lets no other blank, quote or sign through."""
    lines = [f"instance {instance}"]
    for adapter in adapters:
        nic = adapter.settings
        if nic.addressing is Addressing.KEEP:
            continue
        lines.append(f"nic {adapter.mac} {nic.addressing.value}")
        lines += [f"address {adapter.mac} {address}" for address in nic.addresses]
        lines += [f"gateway {adapter.mac} {gateway}" for gateway in nic.gateways]
    lines += [f"dns {server}" for server in settings.dns]
    lines += [f"search {domain}" for domain in settings.search]
    lines += [f"host {entry.address} {' '.join(entry.names)}" for entry in settings.hosts]
    return "".join(f"{line}\n" for line in lines)


def _iso(label: str, files: Mapping[str, bytes]) -> bytes:
    """Rock Ridge for Linux, Joliet for Windows: both keep the names as they are."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, joliet=3, rock_ridge="1.09")
    for number, (name, data) in enumerate(files.items()):
        place = f"/FILE{number}.;1"
        iso.add_fp(io.BytesIO(data), len(data), place, rr_name=name, joliet_path=f"/{name}")
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()
