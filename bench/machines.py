"""Machines that do nothing by themselves: defined and started paused, written to by the bench alone.

Writes go through QEMU's own block layer (`qemu-io` in its monitor), so dirty bitmaps see them as a guest's.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu

from secondsite.lab.place import Site

_BACKEND = "/machine/peripheral/ua-disk/virtio-backend"


@dataclass(frozen=True)
class IdleMachine:
    """A machine with one disk."""

    site: Site
    name: str
    image: Path

    def write(self, offsets: Sequence[int], content: bytes) -> None:
        """Write `content` at each offset, as a guest would."""
        source = self.image.with_suffix(".content")
        source.write_bytes(content)
        source.chmod(0o644)
        with contextlib.closing(self.site.connect()) as connection:
            domain = connection.lookupByName(self.name)
            for offset in offsets:
                self._monitor(domain, f'qemu-io -d {_BACKEND} "write -q -s {source} {offset} {len(content)}"')
        source.unlink()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Started, paused, and off again afterwards."""
        with contextlib.closing(self.site.connect()) as connection:
            domain = connection.lookupByName(self.name)
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
            try:
                yield
            finally:
                domain.destroy()

    @staticmethod
    def _monitor(domain: libvirt.virDomain, command: str) -> None:
        answer = libvirt_qemu.qemuMonitorCommand(
            domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        if "rror" in answer or "ailed" in answer:
            raise RuntimeError(f"{command}: {answer}")


@contextlib.contextmanager
def idle_machine(site: Site, name: str, image: Path, *, start: bool = True) -> Iterator[IdleMachine]:
    """Define a new machine, with an identity of its own, on a qcow2 image; gone afterwards."""
    xml = f"""
      <domain type='qemu'>
        <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type></os>
        <devices>
          <disk type='file' device='disk'>
            <driver name='qemu' type='qcow2' discard='unmap'/><source file='{image}'/>
            <target dev='vda' bus='virtio'/><alias name='ua-disk'/>
          </disk>
        </devices>
      </domain>"""
    with contextlib.closing(site.connect()) as connection:
        domain = connection.defineXML(xml)
        try:
            if start:
                domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
            yield IdleMachine(site, name, image)
        finally:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )


def qcow2_of(raw: Path, image: Path) -> None:
    """A qcow2 image with the content of a raw one, its holes kept."""
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)


def empty_qcow2(image: Path, size_bytes: int) -> None:
    """A sparse image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size_bytes)], check=True)
