"""Libvirt sites on one machine, two or three: each a network, mount and process namespace with its libvirt.

One more set of namespaces, the wan, joins them by a bridge, so that the line can be cut or made slow. Nothing
is named or mounted outside: the namespaces hang on one process each (``site-init.sh``, process 1 inside), so
ending that process ends the site with all it ran and mounted, whatever happened to it before. The lab is
recognised by its root directory in those processes' arguments; no state file can go stale.

    root/boot           kernel and initramfs, seen by every site under the same path
    root/A, root/B, …   etc, lib, log, cache, run: bound over libvirt's directories inside the site
                        disks: the storage pool; scratch: a tmpfs, seen inside only; log, gateway
    root/wan            the line
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from secondsite.base.files import replace_file
from secondsite.base.units import GIB
from secondsite.lab import processes
from secondsite.lab.errors import LabAbsent, LabExists, LabNeedsRoot, LabRootForeign, LabToolMissing
from secondsite.lab.libvirtd import QEMU_USER_AND_GROUP, kernel_confines, make_pool_and_network, start_libvirt
from secondsite.lab.place import Place, Site, holders
from secondsite.lab.roots import claim_root, remove_root, stale_roots

INIT = Path(__file__).with_name("site-init.sh")
SITE_NAMES = ("A", "B", "C")


class Sites:
    """The sites and the line between them: two, or three where `count` says so.

    `attached` sites end with this process however it ends (a test, the demo); detached ones stay until
    `down` (``lab up``). Use `open_sites` to find running ones.
    """

    def __init__(self, root: Path, *, count: int = 2) -> None:
        self.root = root
        self.wan = Place(root=root, name="wan")
        self.sites: Sequence[Site] = tuple(Site(root=root, name=name) for name in SITE_NAMES[:count])
        self.a, self.b = self.sites[:2]
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._attached, self._scratch_bytes = True, GIB

    @property
    def places(self) -> tuple[Place, ...]:
        """The line, then the sites."""
        return (self.wan, *self.sites)

    @property
    def c(self) -> Site:
        """The third, of a lab that has three."""
        return self.sites[2]

    def up(self, *, attached: bool, scratch_bytes: int = GIB) -> None:
        """Make the sites; on a failure, everything is removed again.

        Raises:
            LabNeedsRoot, LabToolMissing, LabRootForeign, LabExists, LabCommandFailed, LabTimeout
        """
        if os.geteuid() != 0:
            raise LabNeedsRoot(uid=os.geteuid())
        _require_tools()
        if any(place.find_holder() for place in self.places):
            raise LabExists(root=self.root)
        remove_root(self.root)  # files of a lab that was killed
        self._attached, self._scratch_bytes = attached, scratch_bytes
        with contextlib.ExitStack() as undo:
            undo.callback(self.down)
            self._make()
            undo.pop_all()

    def _make(self) -> None:
        claim_root(self.root)
        for place in self.places:
            _make_directories(place)
            self._start_holder(place)
        in_wan = [*self._in_wan(), "ip"]
        processes.run([*in_wan, "link", "add", "br0", "type", "bridge"])
        processes.run([*in_wan, "addr", "add", f"{self.wan.address}/24", "dev", "br0"])
        processes.run([*in_wan, "link", "set", "br0", "up"])
        for site in self.sites:
            self._join(site)
        # one after the other: the second takes over what the first learnt about QEMU
        for site in self.sites:
            start_libvirt(site)
            make_pool_and_network(site)

    def lose(self, site: Site) -> None:
        """The site's power fails: all that ran there ends at once, and its line. Its files stay.

        Nobody is asked to end: no guest shuts down, no cache is written back by those who hold it.
        """
        _end_place(site)
        self._keepers.pop(site.name).wait(timeout=60)
        for process in site.spawned:
            process.outer.wait(timeout=60)
        site.spawned.clear()
        site.holder = 0

    def restore(self, site: Site) -> None:
        """The power is back: the site with its line and its libvirt, and the machines libvirt starts itself.

        Raises:
            LabToolMissing, LabCommandFailed, LabTimeout
        """
        shutil.rmtree(site.directory / "run")  # a tmpfs on a real host
        _make_directories(site)
        self._start_holder(site)
        self._join(site)
        start_libvirt(site)

    def _start_holder(self, place: Place) -> None:
        kind = "site" if isinstance(place, Site) else "wan"
        life = "attached" if self._attached else "detached"
        log = os.open(place.directory / "init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        enter = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        try:
            keeper = subprocess.Popen(
                [*enter, "/bin/sh", str(INIT), str(place.directory), kind, str(self._scratch_bytes), life],
                stdin=subprocess.PIPE if self._attached else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(log)
        self._keepers[place.name] = keeper
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

    def _in_wan(self) -> list[str]:
        return ["nsenter", "-t", str(self.wan.holder), "-n"]

    def _join(self, site: Site) -> None:
        """Plug the site into the line."""
        in_wan = [*self._in_wan(), "ip"]
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
        for keeper in self._keepers.values():
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
    sites = Sites(root, count=3 if (root / "C").is_dir() else 2)
    for place in sites.places:
        place.holder = place.find_holder()
        if not place.holder:
            raise LabAbsent(root=root)
    return sites


def remove_stale_labs() -> None:
    """Remove what is left of labs that ended without their clean-up (kill -9, power cut)."""
    for root in stale_roots():
        if not any(map(holders, _all_places(root))):
            # another process may be at the same, and a foreign directory of the name is left as it is
            with contextlib.suppress(FileNotFoundError, LabRootForeign):
                remove_root(root)


def _all_places(root: Path) -> tuple[Place, ...]:
    """Those a lab of this root may have."""
    return Sites(root, count=len(SITE_NAMES)).places


def _end_places(root: Path) -> None:
    for place in reversed(_all_places(root)):
        _end_place(place)


def _end_place(place: Place) -> None:
    for pid in holders(place):
        processes.kill(pid)
    # process 1 is gone only when all it held is gone (the kernel waits for them)
    processes.wait_until(
        lambda: not holders(place) or None,
        what=f"the end of {place.name}",
        root=place.root,
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
