"""A guest of the lab as a libvirt machine: its disks, its definition, its console, agent and channels."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import libvirt
import libvirt_qemu
import msgspec

from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.lab import processes
from secondsite.lab.guest import BootFiles
from secondsite.lab.place import Site
from secondsite.lab.witness import RECORDS_CHANNEL

# Names that Debian's profile of virt-aa-helper lets it look at (/**.img), where AppArmor is on.
KERNEL, INITRAMFS = "kernel.img", "initramfs.img"
# Debian's package ovmf
UEFI_CODE, UEFI_VARIABLES = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# Emulated on two busy cores the guest needs 4 to 20 s.
BOOT_SECONDS_MAX = 180.0


@dataclass(frozen=True)
class GuestSpec:
    """What the guest is made of."""

    name: str = "shop"
    system_bytes: int = 1024 * MIB
    data_bytes: int = 512 * MIB
    # files in the system disk's file system, copied from this machine; random pages in the data disk's
    files_bytes: int = 160 * MIB
    pages_bytes: int = 64 * MIB
    record_slots: int = 16384  # 64 MiB on each disk: five minutes of records at 50 a second
    pause_us: int = 20_000  # between two records
    memory_mib: int = 192
    uefi: bool = False
    agent: bool = True  # has the port of a guest agent, and one that listens there
    more_disks_bytes: tuple[int, ...] = ()  # behind the two with records: vdc and so on
    # fixed ones such as 192.168.50.101/24, an adapter each; none: one adapter, its address asked for
    addresses: tuple[str, ...] = ()

    @property
    def disks_bytes(self) -> dict[str, int]:
        """The size of each disk, by target name."""
        sizes = (self.system_bytes, self.data_bytes, *self.more_disks_bytes)
        return {f"vd{letter}": size for letter, size in zip("abcdefgh", sizes, strict=False)}

    @property
    def hardware_addresses(self) -> tuple[str, ...]:
        """Of the adapters with a fixed address; of QEMU's range, with an end that says whose they are."""
        return tuple(f"52:54:00:5e:c0:{number:02x}" for number in range(1, len(self.addresses) + 1))

    @property
    def command_line(self) -> str:
        """The kernel's."""
        lab = f"lab.slots={self.record_slots} lab.pause_us={self.pause_us}"
        # tsc=unstable: the emulated clock otherwise stalls the boot on a busy machine
        return f"console=ttyS0 panic=-1 tsc=unstable quiet {lab}"


class Check(msgspec.Struct, frozen=True):
    """What the guest's checker found; see workload.c."""

    good: bool
    first: int
    last: int
    token: int
    ahead: int
    bad: int
    gaps: int
    misplaced: int
    tokens_back: int
    lines: tuple[int, int]
    lines_bad: int


class Guest:
    """A machine defined at a site; made by `create_guest`."""

    def __init__(self, site: Site, spec: GuestSpec) -> None:
        self.site = site
        self.spec = spec

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.spec.name

    @property
    def disk_paths(self) -> dict[str, Path]:
        """The image of each disk, by target name."""
        return {target: self.site.disks / f"{self.name}-{target}.qcow2" for target in self.spec.disks_bytes}

    @property
    def variables_path(self) -> Path:
        """Where a UEFI guest's firmware keeps its variables."""
        return self.site.disks / f"{self.name}_VARS.fd"

    @property
    def console_log(self) -> Path:
        """What it wrote on its console."""
        return self.site.directory / "log" / "qemu" / f"{self.name}-console.log"

    @contextlib.contextmanager
    def _domain(self) -> Any:
        with contextlib.closing(self.site.connect()) as connection:
            yield connection.lookupByName(self.name)

    def start(self) -> None:
        """Boot it; returns when the hypervisor runs it."""
        with self._domain() as domain:
            domain.create()

    def wait_ready(self, seconds: float = BOOT_SECONDS_MAX) -> None:
        """Wait until its init has come to its end and the guest agent, if it has one, answers."""
        wait_console(self.console_log, "READY", root=self.site.root, seconds=seconds)
        if not self.spec.agent:
            return
        processes.wait_until(
            self.agent_answers,
            what=f"the guest agent of {self.name}",
            root=self.site.root,
            seconds=seconds,
            poll_seconds=0.1,
        )

    def agent_answers(self) -> bool:
        """Whether the guest agent answers now."""
        try:
            self.agent("guest-ping", timeout_seconds=2)
        except libvirt.libvirtError:
            return False
        return True

    def agent(self, command: str, timeout_seconds: int = 10, **arguments: Any) -> Any:
        """Ask the guest agent; returns its answer."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._domain() as domain:
            answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), timeout_seconds, 0)
        return json.loads(answer)["return"]

    def execute(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """Run a command in the guest; its exit code and output."""
        pid = self.agent("guest-exec", path=words[0], arg=list(words[1:]), capture_output=True)["pid"]

        def finished() -> dict[str, Any] | None:
            status = self.agent("guest-exec-status", pid=pid)
            return status if status["exited"] else None

        what = f"{words[0]} in the guest"
        done = processes.wait_until(
            finished, what=what, root=self.site.root, seconds=seconds, poll_seconds=0.05
        )
        output = done.get("out-data", "") + done.get("err-data", "")
        return done.get("exitcode", -1), base64.b64decode(output).decode(errors="replace")

    def channel_path(self, name: str = RECORDS_CHANNEL) -> Path:
        """The host's end of a channel, as seen from outside the site; the machine must run."""
        with self._domain() as domain:
            text = domain.XMLDesc()
        for channel in re.findall(r"<channel type='unix'>.*?</channel>", text, re.DOTALL):
            if f"name='{name}'" in channel and (path := re.search(r"path='([^']+)'", channel)):
                return self.site.host_path(path.group(1))
        raise LookupError(name)

    def pause(self) -> None:
        """Stop its processors."""
        with self._domain() as domain:
            domain.suspend()

    def resume(self) -> None:
        """Let them go on."""
        with self._domain() as domain:
            domain.resume()

    def destroy(self) -> None:
        """Pull the plug; off already is fine."""
        with self._domain() as domain:
            if domain.isActive():
                domain.destroy()

    def remove(self) -> None:
        """Pull the plug, undefine it and delete its disks; checkpoints of anyone go with it."""
        self.destroy()
        with self._domain() as domain:
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )
        for path in (*self.disk_paths.values(), self.console_log):
            path.unlink(missing_ok=True)


def create_guest(site: Site, boot: BootFiles, spec: GuestSpec | None = None) -> Guest:
    """Make the disks and define the machine at `site`; it does not run yet.

    The boot files are copied to ``root/boot``, which both sites see under the same path: the definition names
    them, and the machine's copy at the other site boots from there too. (Between two real hosts a machine
    boots from its own disk; nothing of this is needed.)
    """
    spec = spec or GuestSpec()
    guest = Guest(site, spec)
    boot_directory = site.root / "boot"
    boot_directory.mkdir(mode=0o755, exist_ok=True)
    for path, name in ((boot.kernel, KERNEL), (boot.initramfs, INITRAMFS)):
        if not (boot_directory / name).exists():
            shutil.copy(path, boot_directory / name)
    for target, path in guest.disk_paths.items():
        with tempfile.TemporaryDirectory(dir=site.disks) as temporary:
            content = Path(temporary) / "content"
            content.mkdir(mode=0o755)
            if target == "vda":
                _fill_system(content, spec)
            elif target == "vdb":
                _fill_data(content, spec)
            slots = spec.record_slots if target in ("vda", "vdb") else 0
            _make_disk(path, spec.disks_bytes[target], slots, content)
    with contextlib.closing(site.connect()) as connection:
        connection.defineXML(domain_xml(guest))
        connection.storagePoolLookupByName(site.pool).refresh()
    return guest


def domain_xml(guest: Guest) -> str:
    """The machine's definition as an administrator would write it."""
    boot = guest.site.root / "boot"
    spec = guest.spec
    disks = "".join(
        f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='{path}'/><target dev='{target}' bus='virtio'/>
    </disk>"""
        for target, path in guest.disk_paths.items()
    )
    console = f"/var/log/libvirt/qemu/{guest.name}-console.log"
    firmware = f"""
    <loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>
    <nvram template='{UEFI_VARIABLES}'>{guest.variables_path}</nvram>"""
    agent = f"<channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel>"
    return f"""
<domain type='qemu'>
  <name>{escape(guest.name)}</name>
  <memory unit='MiB'>{spec.memory_mib}</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>{firmware if spec.uefi else ""}
    <kernel>{boot / KERNEL}</kernel><initrd>{boot / INITRAMFS}</initrd>
    <cmdline>{escape(spec.command_line)}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
    {_adapters(guest)}
    <serial type='pty'><log file='{console}' append='on'/><target port='0'/></serial>
    {agent if spec.agent else ""}
    <channel type='unix'><target type='virtio' name='{RECORDS_CHANNEL}'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>"""


def _adapters(guest: Guest) -> str:
    macs = [f"<mac address='{address}'/>" for address in guest.spec.hardware_addresses] or [""]
    rest = f"<source network='{guest.site.network}'/><model type='virtio'/>"
    return "".join(f"<interface type='network'>{mac}{rest}</interface>" for mac in macs)


def wait_console(log: Path, text: str, *, root: Path, seconds: float = BOOT_SECONDS_MAX) -> str:
    """Wait until a whole line with `text` is in a console log; returns that line."""

    def found() -> str | None:
        lines = read_console(log)
        return next((line for line in lines if text in line), None)

    return processes.wait_until(
        found,
        what=f"{text!r} in {log.name}",
        root=root,
        seconds=seconds,
        evidence=lambda: processes.tail(log),
    )


def read_console(log: Path) -> Sequence[str]:
    """The whole lines of a console log so far."""
    try:
        text = log.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip("\r") for line in text.split("\n")[:-1]]


def read_checks(log: Path) -> list[Check]:
    """What the checker said at each boot, oldest first."""
    lines = (line for line in read_console(log) if line.startswith("CHECK {"))
    return [msgspec.json.decode(line.removeprefix("CHECK "), type=Check) for line in lines]


def _make_disk(path: Path, size_bytes: int, slots: int, content: Path) -> None:
    """A qcow2 image: in front an ext4 file system with `content`, behind it the ring of records."""
    file_system_bytes = size_bytes - slots * SUB_BLOCK_BYTES
    raw = path.with_suffix(".raw")
    with contextlib.ExitStack() as stack:
        stack.callback(raw.unlink, missing_ok=True)
        blocks = str(file_system_bytes // SUB_BLOCK_BYTES)
        # no lazy initialisation: it would write in the background and blur the figures of change
        options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-O", "^resize_inode", "-m", "0"]
        processes.run(["mkfs.ext4", "-q", "-F", "-b", "4096", *options, "-d", content, raw, blocks])
        os.truncate(raw, size_bytes)
        processes.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], timeout_seconds=300)


def _fill_system(content: Path, spec: GuestSpec) -> None:
    """Its fixed addresses, and real files of this machine until there are `files_bytes` of them."""
    if spec.addresses:
        lines = [
            f"{mac} {address}" for mac, address in zip(spec.hardware_addresses, spec.addresses, strict=True)
        ]
        (content / "etc").mkdir()
        (content / "etc" / "addresses").write_text("\n".join(lines) + "\n")
    left = spec.files_bytes
    for source in sorted(Path("/usr/lib").rglob("*")):
        if left <= 0:
            return
        if source.is_symlink() or not source.is_file() or source.stat().st_size > left:
            continue
        target = content / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        left -= source.stat().st_size


def _fill_data(content: Path, spec: GuestSpec) -> None:
    """One file of pages the workload rewrites here and there; random, as data that is compressed already."""
    pages = content / "pages"
    words = [
        "dd",
        "if=/dev/urandom",
        f"of={pages}",
        "bs=1M",
        f"count={spec.pages_bytes // MIB}",
        "status=none",
    ]
    processes.run(words)
