"""Two libvirt sites on one machine: each a network, mount and process namespace with a libvirt of its own.

A third set of namespaces, the wan, joins them by a bridge, so that the line can be cut or made slow. Nothing
is named or mounted outside: the namespaces hang on one process each (``site-init.sh``, process 1 inside), so
ending that process ends the site with all it ran and mounted, whatever happened to it before. The lab is
recognised by its root directory in those processes' arguments; no state file can go stale.

    root/boot           kernel and initramfs, seen by both sites under the same path
    root/A, root/B      etc, lib, log, cache, run: bound over libvirt's directories inside the site
                        disks: the storage pool; scratch: a tmpfs, seen inside only; log, gateway
    root/wan            the line
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from secondsite.base.files import replace_file
from secondsite.base.units import GIB
from secondsite.lab import processes
from secondsite.lab.errors import LabAbsent, LabExists, LabNeedsRoot, LabRootForeign, LabToolMissing
from secondsite.lab.libvirtd import QEMU_USER_AND_GROUP, kernel_confines, make_pool_and_network, start_libvirt
from secondsite.lab.place import Place, Site, holders
from secondsite.lab.roots import claim_root, remove_root, stale_roots

INIT = Path(__file__).with_name("site-init.sh")


class Sites:
    """The two sites and the line between them.

    `attached` sites end with this process however it ends (a test, the demo); detached ones stay until
    `down` (``lab up``). Use `open_sites` to find running ones.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wan = Place(root=root, name="wan")
        self.a = Site(root=root, name="A")
        self.b = Site(root=root, name="B")
        self._keepers: list[subprocess.Popen[bytes]] = []

    @property
    def places(self) -> tuple[Place, ...]:
        """The line, then the sites."""
        return (self.wan, self.a, self.b)

    @property
    def sites(self) -> tuple[Site, Site]:
        """Both sites."""
        return (self.a, self.b)

    def up(self, *, attached: bool, scratch_bytes: int = GIB) -> None:
        """Make both sites; on a failure, everything is removed again.

        Raises:
            LabNeedsRoot, LabToolMissing, LabRootForeign, LabExists, LabCommandFailed, LabTimeout
        """
        if os.geteuid() != 0:
            raise LabNeedsRoot(uid=os.geteuid())
        _require_tools()
        if any(place.find_holder() for place in self.places):
            raise LabExists(root=self.root)
        remove_root(self.root)  # files of a lab that was killed
        with contextlib.ExitStack() as undo:
            undo.callback(self.down)
            self._make(attached, scratch_bytes)
            undo.pop_all()

    def _make(self, attached: bool, scratch_bytes: int) -> None:
        claim_root(self.root)
        for place in self.places:
            _make_directories(place)
            self._start_holder(place, attached, scratch_bytes)
        self._join()
        # one after the other: the second takes over what the first learnt about QEMU
        for site in self.sites:
            start_libvirt(site)
            make_pool_and_network(site)

    def _start_holder(self, place: Place, attached: bool, scratch_bytes: int) -> None:
        kind = "site" if isinstance(place, Site) else "wan"
        life = "attached" if attached else "detached"
        log = os.open(place.directory / "init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        enter = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        try:
            keeper = subprocess.Popen(
                [*enter, "/bin/sh", str(INIT), str(place.directory), kind, str(scratch_bytes), life],
                stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(log)
        self._keepers.append(keeper)
        started = place.directory / "started"
        processes.wait_until(
            lambda: started.exists() or keeper.poll() is not None,
            what=f"the namespaces of {place.name}",
            root=self.root,
            seconds=60,
        )
        place.holder = place.find_holder()
        if not place.holder:
            keeper.wait()
            raise LabToolMissing(
                what=f"A working set of namespaces ({processes.tail(place.directory / 'init.log')})"
            )

    def _join(self) -> None:
        in_wan = ["nsenter", "-t", str(self.wan.holder), "-n", "ip"]
        processes.run([*in_wan, "link", "add", "br0", "type", "bridge"])
        processes.run([*in_wan, "addr", "add", f"{self.wan.address}/24", "dev", "br0"])
        processes.run([*in_wan, "link", "set", "br0", "up"])
        for site in self.sites:
            port, holder = f"w{site.name}", str(site.holder)
            peer = ["type", "veth", "peer", "name", "wan0", "netns", holder]
            processes.run([*in_wan, "link", "add", port, *peer])
            processes.run([*in_wan, "link", "set", port, "master", "br0", "up"])
            in_site = ["nsenter", "-t", holder, "-n", "ip"]
            processes.run([*in_site, "addr", "add", f"{site.address}/24", "dev", "wan0"])
            processes.run([*in_site, "link", "set", "wan0", "up"])

    def link(self, site: Site, *, up: bool) -> None:
        """Join a site to the line or cut it off."""
        self.wan.run("ip", "link", "set", f"w{site.name}", "up" if up else "down")

    def limit(self, kilobits_per_second: int | None) -> None:
        """Limit what each site can send on the line (token bucket), None: no limit."""
        for site in self.sites:
            if "tbf" in site.run("tc", "qdisc", "show", "dev", "wan0"):
                site.run("tc", "qdisc", "del", "dev", "wan0", "root")
            if kilobits_per_second is not None:
                rate = ["rate", f"{kilobits_per_second}kbit", "burst", "64kb", "latency", "200ms"]
                site.run("tc", "qdisc", "add", "dev", "wan0", "root", "tbf", *rate)

    def down(self) -> None:
        """End every process of the lab and remove its files; safe to repeat, also when it never was up."""
        _end_places(self.root)
        for keeper in self._keepers:
            if keeper.stdin:
                keeper.stdin.close()
            keeper.wait(timeout=60)
        self._keepers.clear()
        for site in self.sites:
            for process in site.spawned:
                process.outer.wait(timeout=60)
            site.spawned.clear()
        for place in self.places:
            place.holder = 0
        remove_root(self.root)


def open_sites(root: Path) -> Sites:
    """The running lab of `root`.

    Raises:
        LabAbsent: it does not run, or not whole.
    """
    sites = Sites(root)
    for place in sites.places:
        place.holder = place.find_holder()
        if not place.holder:
            raise LabAbsent(root=root)
    return sites


def remove_stale_labs() -> None:
    """Remove what is left of labs that ended without their clean-up (kill -9, power cut)."""
    for root in stale_roots():
        if not any(map(holders, Sites(root).places)):
            # another process may be at the same, and a foreign directory of the name is left as it is
            with contextlib.suppress(FileNotFoundError, LabRootForeign):
                remove_root(root)


def _end_places(root: Path) -> None:
    for place in reversed(Sites(root).places):
        for pid in holders(place):
            processes.kill(pid)
        # process 1 is gone only when all it held is gone (the kernel waits for them)
        processes.wait_until(
            lambda place=place: not holders(place) or None,  # type: ignore[misc]
            what=f"the end of {place.name}",
            root=root,
            seconds=60,
        )


def _make_directories(place: Place) -> None:
    names = ["log"]
    if isinstance(place, Site):
        names += ["etc/qemu/networks", "lib/images", "lib/qemu", "log/qemu", "cache", "run", "disks"]
        names += ["scratch", "gateway", "sockets"]
    for name in names:
        (place.directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    if isinstance(place, Site):
        shutil.chown(place.sockets, *QEMU_USER_AND_GROUP)  # QEMU makes its sockets itself
    if isinstance(place, Site) and kernel_confines():
        # the line a stock Debian host lacks (see fabrics.libvirt.places), in a copy the site sees as its own
        rules = place.directory / "apparmor.d"
        shutil.copytree("/etc/apparmor.d", rules, symlinks=True, dirs_exist_ok=True)
        local = rules / "local" / "abstractions" / "libvirt-qemu"
        before = local.read_bytes() if local.exists() else b""
        local.parent.mkdir(parents=True, exist_ok=True)
        replace_file(local, before + f"{place.sockets}/** rw,\n".encode(), mode=0o644)
    (place.directory / "started").unlink(missing_ok=True)


def _require_tools() -> None:
    for tool in ("unshare", "nsenter", "ip", "tc", "libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img"):
        if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists():
            raise LabToolMissing(what=tool)
