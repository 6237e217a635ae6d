"""What the lab's guest boots: a Debian cloud kernel and a small initramfs with the agent and the workload.

Made from Debian packages that are downloaded and unpacked, never installed, so the machine's own boot and
init are not touched; works for any user. Kept in the cache under a name made of all versions that went in.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from secondsite.base.files import replace_file
from secondsite.lab import processes
from secondsite.lab.cache import cache_directory
from secondsite.lab.cpio import Entry, directory, encode_archive, regular
from secondsite.lab.errors import LabCommandFailed, LabToolMissing

_HERE = Path(__file__).parent
SOURCES = ("guest.py", "cpio.py", "guest-init.sh", "workload.c")
AGENT_PACKAGE = "qemu-guest-agent"
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# Drivers for what `domain.py` puts into the machine; ext4 is built into the kernel.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_scsi",
    "sr_mod",
    "isofs",
    "af_packet",
    "evdev",
    "button",
    "efivarfs",
)

_ADDRESS_SCRIPT = b"""#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet
[ -n "$router" ] && route add default gw $router
echo "ADDRESS $ip" >/dev/console
"""
_SHUTDOWN_SCRIPT = b"""#!/bin/sh
echo "SHUTDOWN" >/dev/console
killall workload 2>/dev/null
sync
umount /sys-disk /data-disk /more/* 2>/dev/null
poweroff -f
"""


@dataclass(frozen=True)
class BootFiles:
    """What a machine of the lab boots from."""

    kernel: Path
    initramfs: Path


def build_boot_files() -> BootFiles:
    """The kernel and initramfs, from the cache or made now (about 10 s and 27 MB of download).

    Raises:
        LabToolMissing, LabCommandFailed: a package cannot be had, or gcc is not installed.
    """
    cache = cache_directory()
    packages = _packages(cache)
    made_from = hashlib.sha256("\n".join(f"{name}={version}" for name, version in packages.items()).encode())
    for name in SOURCES:
        made_from.update((_HERE / name).read_bytes())
    made_from.update(_busybox().read_bytes())
    target = cache / f"guest-{made_from.hexdigest()[:16]}"
    if not target.is_dir():
        print("making the lab's guest from Debian packages", file=sys.stderr)  # noqa: T201 - takes seconds
        # built aside and renamed: whoever finds the directory finds it whole
        with tempfile.TemporaryDirectory(dir=cache, prefix=".building-") as temporary:
            work = Path(temporary)
            for package in packages:
                _unpack(cache, package, work / "packages")
            made = work / "guest"
            made.mkdir()
            _build(work / "packages", work, made)
            made.chmod(0o755)
            if not target.is_dir():
                made.rename(target)
    return BootFiles(kernel=target / "vmlinuz", initramfs=target / "initramfs")


def _packages(cache: Path) -> dict[str, str]:
    """The packages to unpack and their versions; remembered (2 s) while apt's lists stay as they are."""
    lists = [Path("/var/lib/apt/lists"), cache / "apt" / "lists"]
    stamp = " ".join(str(path.stat().st_mtime_ns) for path in lists if path.is_dir())
    memo = cache / "packages.json"
    try:
        remembered = msgspec.json.decode(memo.read_bytes(), type=tuple[str, dict[str, str]])
    except (FileNotFoundError, msgspec.MsgspecError):
        remembered = ("", {})
    if remembered[0] == stamp:
        return remembered[1]
    packages = {name: _candidate(cache, name) for name in (_kernel_package(cache), AGENT_PACKAGE)}
    replace_file(memo, msgspec.json.encode((stamp, packages)), mode=0o644)
    return packages


def _build(packages: Path, work: Path, made: Path) -> None:
    kernel = next((packages / "boot").glob("vmlinuz-*"))
    replace_file(made / "vmlinuz", kernel.read_bytes(), mode=0o644)
    workload = work / "workload"
    processes.run(["gcc", "-O2", "-static", "-o", workload, _HERE / "workload.c"])
    agent = packages / "usr" / "sbin" / "qemu-ga"
    entries: dict[str, Entry] = {}
    for name in (
        "bin",
        "sbin",
        "lib",
        "lib64",
        "usr",
        "usr/sbin",
        "usr/bin",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
    ):
        entries[name] = directory(name)
    for name in ("proc", "sys", "dev", "run", "tmp", "var", "var/run", "var/log", "modules"):
        entries[name] = directory(name)
    files = {
        "init": (_HERE / "guest-init.sh").read_bytes(),
        "bin/busybox": _busybox().read_bytes(),
        "bin/workload": workload.read_bytes(),
        "bin/guest-address": _ADDRESS_SCRIPT,
        "bin/guest-shutdown": _SHUTDOWN_SCRIPT,
        "etc/acpi/PWRF/00000080": _SHUTDOWN_SCRIPT,
        "usr/sbin/qemu-ga": agent.read_bytes(),
    }
    for library in _libraries(agent):
        files[str(library).lstrip("/")] = library.read_bytes()
    order = []
    for module in _modules_in_order(next((packages / "lib" / "modules").iterdir())):
        files[f"modules/{module.name}"] = module.read_bytes()
        order.append(module.name)
    files["modules/order"] = "\n".join(order).encode()
    for path, data in files.items():
        for parent in reversed(Path(path).parents[:-1]):
            entries.setdefault(str(parent), directory(str(parent)))
        entries[path] = regular(path, data, executable=True)
    # not compressed: an emulated processor unpacks slower than the boot loader loads
    replace_file(made / "initramfs", encode_archive(entries.values()), mode=0o644)


def _busybox() -> Path:
    for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")):
        if path.is_file():
            return path
    raise LabToolMissing(what="busybox-static")


def _libraries(program: Path) -> Iterable[Path]:
    """What the dynamic linker loads for `program`, from this machine: the same Debian release."""
    output = processes.run(["ldd", program])
    if missing := re.findall(r"(\S+) => not found", output):
        raise LabToolMissing(what=f"The library {missing[0]} of the guest agent")
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", output)]


def _modules_in_order(tree: Path) -> list[Path]:
    """`MODULES` and what they need, each after all that it needs. Modules name their needs in .modinfo."""
    by_name = {path.stem.replace("-", "_"): path for path in (tree / "kernel").rglob("*.ko")}
    ordered: list[Path] = []

    def add(name: str) -> None:
        path = by_name.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return  # built into the kernel, or there already
        needs = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in needs.group(1).decode().split(",") if needs else []:
            if needed:
                add(needed)
        ordered.append(path)

    for name in MODULES:
        add(name)
    return ordered


def _apt(cache: Path, tool: str, *arguments: str, fresh_lists: bool, where: Path | None = None) -> str:
    options = []
    if fresh_lists:
        state = cache / "apt"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        options = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
    return processes.run(
        [tool, "-q", *options, "-o", "APT::Sandbox::User=root", *arguments],
        directory=where,
        timeout_seconds=300,
    )


def _lists_are_ours(cache: Path) -> bool:
    return (cache / "apt" / "lists").is_dir()


def _update_lists(cache: Path) -> None:
    """Package lists of our own: the machine's may be absent or out of date, and only root may renew them."""
    _apt(cache, "apt-get", "update", fresh_lists=True)


def _show(cache: Path, package: str, field: str) -> str | None:
    try:
        text = _apt(
            cache, "apt-cache", "show", "--no-all-versions", package, fresh_lists=_lists_are_ours(cache)
        )
    except LabCommandFailed:
        return None
    found = re.search(rf"^{field}: (.*)$", text, re.MULTILINE)
    return found.group(1) if found else None


def _candidate(cache: Path, package: str) -> str:
    version = _show(cache, package, "Version")
    if version is None:
        _update_lists(cache)
        version = _show(cache, package, "Version")
    if version is None:
        raise LabToolMissing(what=f"The Debian package {package}")
    return version


def _kernel_package(cache: Path) -> str:
    _candidate(cache, KERNEL_META_PACKAGE)
    depends = _show(cache, KERNEL_META_PACKAGE, "Depends") or ""
    found = re.search(r"linux-image-[0-9][^ ,]*", depends)
    if not found:
        raise LabToolMissing(what=f"The kernel that {KERNEL_META_PACKAGE} names")
    return found.group(0)


def _unpack(cache: Path, package: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        download = Path(temporary)
        try:
            _apt(cache, "apt-get", "download", package, fresh_lists=_lists_are_ours(cache), where=download)
        except LabCommandFailed:
            _update_lists(cache)  # the lists named a file the archive no longer has
            _apt(cache, "apt-get", "download", package, fresh_lists=True, where=download)
        processes.run(["dpkg-deb", "-x", next(download.glob("*.deb")), target])
    shutil.rmtree(target / "usr" / "share" / "doc", ignore_errors=True)


def main() -> int:
    """Make the boot files now, part of installation, and drop those of earlier versions."""
    kept = build_boot_files().kernel.parent
    for old in kept.parent.glob("guest-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
