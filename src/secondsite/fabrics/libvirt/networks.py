"""Networks made for tests: a bridge with nothing behind it."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.fabrics.libvirt import inventory
from secondsite.model.machines import Network

# libvirt 9.0 keeps no metadata with networks. A UUID computed from the name marks those we made, survives a
# crash of ours, and is never an administrator's.
_OURS = uuid.UUID("6a1f0a5e-5e0c-5f6b-9a3a-2f0d7c1be0e5")


def uuid_of(name: str) -> str:
    """The UUID of a network of ours with this name."""
    return str(uuid.uuid5(_OURS, name))


def is_ours(network: Any) -> bool:
    """Whether we made it."""
    return bool(network.UUIDString() == uuid_of(network.name()))


def isolated_xml(name: str) -> str:
    """A network without `<forward>`, without an address of the host and so without DHCP or DNS.

    Machines keep the addresses they have; the host takes no part, so nothing of the test can meet it.
    """
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "uuid").text = uuid_of(name)
    # delay 0: without it a bridge keeps guests off the network for its first 15 s
    ET.SubElement(root, "bridge", stp="off", delay="0")
    return ET.tostring(root, encoding="unicode")


def make_isolated(connection: Any, name: str) -> Network:
    """Make and start it; one of this name that exists is started and returned as it is."""
    try:
        network = connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        network = connection.networkDefineXML(isolated_xml(name))
    if not network.isActive() and is_ours(network):
        try:
            network.create()
        except libvirt.libvirtError:
            network.undefine()
            raise
    return inventory.network(network)


def remove(connection: Any, name: str) -> None:
    """Remove one of ours; unknown names and networks of others are left alone."""
    try:
        network = connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
            return
        raise
    if not is_ours(network):
        return
    if network.isActive():
        network.destroy()
    with contextlib.suppress(libvirt.libvirtError):
        network.undefine()  # a network that was not persistent vanished with destroy
