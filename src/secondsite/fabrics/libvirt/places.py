"""Where our files and sockets lie on a hypervisor host, and what the host's own rules ask of them.

Decision for a stock Debian host, read from what libvirt-daemon-system ships in /etc/apparmor.d and from
libvirt's virt-aa-helper:

- Scratch files and overlays are disks in libvirt's eyes: it gives them to QEMU's user (dynamic ownership) and
  adds them to the machine's AppArmor profile itself (`backupBegin`, domain start). Nothing to do for us.
- Firmware variables and console logs likewise: virt-aa-helper adds <nvram>; logs are written by virtlogd.
- A unix socket of an NBD server is in neither: libvirt labels no network disk (virt-aa-helper adds local
  files only), and the socket of a pull backup is made by QEMU where we say. The stock profile lets QEMU
  write nothing outside its own directories. So all sockets lie below one directory, and one rule allows it,
  in the file Debian includes for the purpose at the end of abstractions/libvirt-qemu:
  /etc/apparmor.d/local/abstractions/libvirt-qemu. Where AppArmor is on and the rule is missing we refuse with
  the line to add, rather than fail in the middle of a failover.
- QEMU's user owns only the directory in it where backup sockets are made. The guard's socket lies above: a
  guest that broke out of QEMU must not be able to put another in its place.
- SELinux is not on in Debian; with it the socket directory needs the type svirt_image_t.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.errors import HostUnready
from secondsite.model.ids import MachineId

# sockaddr_un holds 108 bytes with the zero at the end.
SOCKET_PATH_BYTES_MAX = 107

APPARMOR_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
APPARMOR_LOCAL = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")


@dataclass(frozen=True)
class Places:
    """The two directories; names in them follow from machine and disk: a crash leaves nothing unknown."""

    scratch_dir: Path
    socket_dir: Path

    @property
    def backup_dir(self) -> Path:
        """QEMU makes its sockets in here: the only directory of ours that its user may write to."""
        return self.socket_dir / "backup"

    def backup_socket(self, machine: MachineId) -> Path:
        """Where QEMU serves the machine's backup job."""
        return self.backup_dir / f"{machine}.sock"

    def scratch_file(self, machine: MachineId, dev: str) -> Path:
        """Where QEMU saves what is overwritten while the job is open."""
        return self.scratch_dir / f"{machine}-{dev}.scratch"

    def remove_leftovers(self, machine: MachineId) -> None:
        """Remove the machine's scratch files and socket that a killed QEMU left."""
        for path in [*self.scratch_dir.glob(f"{machine}-*.scratch"), self.backup_socket(machine)]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def qemu_user(connection: Any) -> tuple[int, int] | None:
    """The uid and gid QEMU runs as on this host, None where libvirt does not change them."""
    capabilities = domxml.parse(connection.getCapabilities())
    for model in capabilities.findall("host/secmodel"):
        if model.findtext("model") == "dac":
            label = model.findtext("baselabel") or ""
            user, _, group = label.partition(":")
            if user.startswith("+") and group.startswith("+"):
                return int(user[1:]), int(group[1:])
    return None


def give_to_qemu(path: Path, owner: tuple[int, int] | None, mode: int) -> None:
    """Owner and mode of a directory or socket that QEMU uses and others on the host must not."""
    path.chmod(mode)
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner)


def apparmor_rule(socket_dir: Path) -> str:
    """The one line a stock AppArmor profile lacks."""
    return f"{socket_dir}/** rw,"


def _closed_on_the_way(path: Path, owner: tuple[int, int]) -> Path | None:
    # the first directory above that QEMU's user cannot pass; libvirt never opens those for it
    uid, gid = owner
    for parent in reversed(path.parents):
        status = parent.stat()
        bit = stat.S_IXUSR if status.st_uid == uid else stat.S_IXGRP if status.st_gid == gid else stat.S_IXOTH
        if not status.st_mode & bit:
            return parent
    return None


def prepare(places: Places, connection: Any) -> None:
    """Make the directories and check that QEMU may use the sockets.

    Raises:
        HostUnready: AppArmor or a directory's mode keeps QEMU out; says what to do.
    """
    longest = len(os.fsencode(places.backup_socket(MachineId("0" * 36))))
    if longest > SOCKET_PATH_BYTES_MAX:
        raise HostUnready(
            why=f"the path {places.socket_dir} is too long for sockets ({longest} bytes)",
            remedy=f"Choose a socket directory shorter by {longest - SOCKET_PATH_BYTES_MAX} characters.",
        )
    places.scratch_dir.mkdir(parents=True, exist_ok=True)
    places.backup_dir.mkdir(parents=True, exist_ok=True)
    owner = qemu_user(connection)
    give_to_qemu(places.backup_dir, owner, 0o770)
    check_reachable(places.backup_dir, owner)
    check_reachable(places.scratch_dir, owner, confined=False)


def check_reachable(directory: Path, owner: tuple[int, int] | None, *, confined: bool = True) -> None:
    """Check that QEMU's user gets to `directory`; with `confined`, that AppArmor lets it use sockets there.

    Raises:
        HostUnready: it does not; says what to do.
    """
    if owner is not None:
        closed = _closed_on_the_way(directory / "any", owner)
        if closed is not None:
            raise HostUnready(
                why=f"QEMU's user (uid {owner[0]}) cannot pass {closed} on the way to {directory}",
                remedy=f"Run `chmod o+x {closed}`, or choose another directory.",
            )
    if confined and not apparmor_allows(directory):
        rule = apparmor_rule(directory)
        raise HostUnready(
            why=f"AppArmor keeps QEMU from the sockets in {directory}",
            remedy=f"Add the line `{rule}` to {APPARMOR_LOCAL}; the machine's next backup or start reads it.",
        )


def apparmor_allows(directory: Path) -> bool:
    """Whether AppArmor is off, or a line of ours names the directory or one above it."""
    try:
        if APPARMOR_ENABLED.read_text().strip() != "Y" or not APPARMOR_LOCAL.parents[2].exists():
            return True
    except FileNotFoundError:
        return True  # a kernel without AppArmor
    try:
        lines = {line.strip() for line in APPARMOR_LOCAL.read_text().splitlines()}
    except FileNotFoundError:
        return False
    return any(apparmor_rule(place) in lines for place in (directory, *directory.parents))
