"""A site's own libvirtd and virtlogd, its storage pool and its production network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from pathlib import Path

import libvirt
import msgspec

from secondsite.base.files import replace_file
from secondsite.lab import processes
from secondsite.lab.cache import cache_directory
from secondsite.lab.place import Site

# Site networks as a guest sees them; production differs by site, as real sites do.
GUEST_SUBNETS = {"A": "192.168.50", "B": "192.168.60", "C": "192.168.70"}
# The first QEMU probe of a new libvirtd takes about 8 s on a quiet machine.
LIBVIRT_SECONDS_MAX = 120.0

# No authentication: the socket is root's alone, and D-Bus, which polkit would need, stays outside the site.
_LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
host_uuid = "{host_uuid}"
log_outputs = "3:file:/var/log/libvirt/libvirtd-messages.log"
"""
QEMU_USER_AND_GROUP = ("libvirt-qemu", "kvm")  # as on a stock Debian host
_QEMU_CONF = f"""\
user = "{QEMU_USER_AND_GROUP[0]}"
group = "{QEMU_USER_AND_GROUP[1]}"
dynamic_ownership = 1
namespaces = []
cgroup_controllers = []
"""


def start_libvirt(site: Site) -> None:
    """Start virtlogd and libvirtd inside the site; returns when libvirt answers."""
    etc = site.directory / "etc"
    replace_file(
        etc / "libvirtd.conf", _LIBVIRTD_CONF.format(host_uuid=_host_uuid(site)).encode(), mode=0o644
    )
    qemu_conf = _QEMU_CONF
    if not kernel_confines():
        # without AppArmor in the kernel libvirt has nothing to confine guests with; where there is one, the
        # lab's guests run confined as on any Debian host
        qemu_conf += 'security_driver = "none"\n'
    replace_file(etc / "qemu.conf", qemu_conf.encode(), mode=0o644)
    _restore_capabilities(site)
    # with -d the first process of each ends when the daemon is ready to be used
    site.run("virtlogd", "-d", "-p", "/run/virtlogd.pid")
    site.run("libvirtd", "-d", "-p", "/run/libvirtd.pid")
    connection = processes.wait_until(
        lambda: _try_connect(site),
        what=f"libvirt of site {site.name}",
        root=site.root,
        seconds=LIBVIRT_SECONDS_MAX,
        evidence=lambda: processes.tail(site.directory / "log" / "libvirtd-messages.log"),
    )
    with contextlib.closing(connection):
        # probes every QEMU of the machine now (1.5 s each where nothing was kept), not at the first guest
        connection.getCapabilities()
    _keep_capabilities(site)


def make_pool_and_network(site: Site) -> None:
    """The site's storage pool over its `disks`, and a production network without a way out of the machine."""
    subnet = GUEST_SUBNETS[site.name]
    pool = f"""
        <pool type='dir'><name>{site.pool}</name><target><path>{site.disks}</path></target></pool>"""
    network = f"""
        <network><name>{site.network}</name><bridge name='production' stp='off' delay='0'/>
          <ip address='{subnet}.1' netmask='255.255.255.0'>
            <dhcp><range start='{subnet}.10' end='{subnet}.99'/></dhcp></ip></network>"""
    with contextlib.closing(site.connect()) as connection:
        made = connection.storagePoolDefineXML(pool)
        made.create()
        made.setAutostart(1)
        net = connection.networkDefineXML(network)
        net.create()
        net.setAutostart(1)


def quiet_libvirt() -> None:
    """Keep libvirt's C library from printing every error to standard error; they arrive as exceptions."""
    libvirt.registerErrorHandler(lambda *_: None, None)


def _try_connect(site: Site) -> libvirt.virConnect | None:
    quiet_libvirt()
    try:
        return site.connect()
    except libvirt.libvirtError:
        return None


def _host_uuid(site: Site) -> uuid.UUID:
    # libvirt takes two hosts with one identity for one host (and refuses to migrate between them)
    return uuid.uuid5(uuid.NAMESPACE_URL, f"secondsite-lab:{site.directory}")


def kernel_confines() -> bool:
    """Whether AppArmor is on, so that libvirt confines its guests."""
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    return enabled.exists() and enabled.read_text().strip() == "Y"


def _capabilities_cache() -> Path:
    qemu = Path(shutil.which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64").resolve()
    status = qemu.stat()
    # libvirt itself checks the entries' validity (times of the binaries, kernel, microcode); the name only
    # keeps entries of several installations apart
    made_from = f"{qemu} {status.st_size} {status.st_mtime_ns} {os.uname().release} {libvirt.getVersion()}"
    return cache_directory() / f"capabilities-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.json"


def _restore_capabilities(site: Site) -> None:
    kept = _capabilities_cache()
    if kept.is_file():
        for name, content in msgspec.json.decode(kept.read_bytes(), type=dict[str, bytes]).items():
            path = site.directory / "cache" / "qemu" / "capabilities" / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)


def _keep_capabilities(site: Site) -> None:
    """One file, not a directory of root's: the user whose clone it lies in can remove it."""
    kept = _capabilities_cache()
    made = {path.name: path.read_bytes() for path in site.directory.glob("cache/qemu/capabilities/*.xml")}
    if made and not kept.is_file():
        replace_file(kept, msgspec.json.encode(made), mode=0o644)
