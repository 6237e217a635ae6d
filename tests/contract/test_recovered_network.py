"""What was set for a recovered machine's network, read by real cloud-init and carried out by real shells.

cloud-init is Debian's package, unpacked by `./run`; the script runs under dash and bash with the kernel's own
adapters, in a network namespace of its own.
"""

from __future__ import annotations

import configparser
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secondsite.fabrics.guest import drive
from secondsite.fabrics.guest.drive import Adapter
from secondsite.model.recovered import Addressing, HostsEntry, Injection, NicSettings, RecoveredSettings

ROOT = Path(__file__).parents[2]
CLOUD_INIT = ROOT / ".tools" / "cloud-init"
READER = ROOT / "tests" / "support" / "cloud_init.py"
DNS, SEARCH = ("192.0.2.53", "2001:db8::53"), ("example.test",)
HOSTS = (HostsEntry(address="192.0.2.9", names=("db", "db.example.test")),)
V4, V6, V4_GATEWAY, V6_GATEWAY = "192.0.2.10/24", "2001:db8::10/64", "192.0.2.1", "2001:db8::1"
SECOND = "198.51.100.7/24"


@dataclass(frozen=True)
class Case:
    """adapters: addresses and gateways, in their order."""

    adapters: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    dns: tuple[str, ...] = ()
    hosts: tuple[HostsEntry, ...] = ()

    @property
    def settings(self) -> RecoveredSettings:
        return RecoveredSettings(
            injection=Injection.CLOUD_INIT,
            dns=self.dns,
            search=SEARCH if self.dns else (),
            hosts=self.hosts,
            nics=tuple(
                NicSettings(
                    nic=str(number + 1), addressing=Addressing.STATIC, addresses=own, gateways=gateways
                )
                for number, (own, gateways) in enumerate(self.adapters)
            ),
        )

    def built(self) -> list[Adapter]:
        return [Adapter(_mac(number), nic) for number, nic in enumerate(self.settings.nics)]


def _mac(number: int) -> str:
    return f"52:54:00:00:00:0{number + 1}"


ONE = Case(adapters=(((V4,), (V4_GATEWAY,)),))
TWO = Case(adapters=(((V4, V6), (V4_GATEWAY, V6_GATEWAY)), ((SECOND,), ())), dns=DNS, hosts=HOSTS)
SIX = Case(adapters=(((V6,), ("fe80::1",)),), dns=("2001:db8::53",))


def by_cloud_init(case: Case, tmp_path: Path) -> Any:
    seed = tmp_path / "seed"
    seed.mkdir()
    for name, data in drive.seed_files(case.settings, case.built(), instance="i1").items():
        (seed / name).write_bytes(data)
    system = CLOUD_INIT / "root"
    done = subprocess.run(
        [CLOUD_INIT / "venv/bin/python", READER, seed, tmp_path / "out", system / "etc/cloud/cloud.cfg"],
        env={"PYTHONPATH": str(system / "usr/lib/python3/dist-packages"), "PATH": "/usr/sbin:/usr/bin:/bin"},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [ONE, TWO, SIX], ids=["one", "two", "six"])
def test_cloud_init_takes_the_seed_and_changes_nothing_but_the_network(case: Case, tmp_path: Path) -> None:
    told = by_cloud_init(case, tmp_path)
    assert (told["found"], told["instance"], told["hostname"]) == (True, "secondsite-i1", None)
    assert told["invalid"] == "", "its own schema"
    wanted = ["write-files"] if case.hosts else []
    assert list(told["modules"].values()) == [wanted, [], []], "no other module looks at this machine"
    assert told["distribution"] > 5, "which the distribution would have had run"
    for host in case.hosts:
        [written] = told["user"]["write_files"]
        assert (written["path"], written["append"]) == ("/etc/hosts", True)
        assert written["content"] == f"{host.address} {' '.join(host.names)}\n"
    for number, (addresses, gateways) in enumerate(case.adapters):
        wanted_of = _Wanted(_mac(number), set(addresses), set(gateways), set(case.dns))
        for renderer, read in READ.items():
            assert read(told["rendered"][renderer], number) == wanted_of, renderer


@dataclass(frozen=True)
class _Wanted:
    """What a distribution's network is told of one adapter."""

    mac: str
    addresses: set[str]
    gateways: set[str]
    dns: set[str]


def _networkd(files: dict[str, str], number: int) -> _Wanted:
    lines = files[f"etc/systemd/network/10-cloud-init-secondsite{number}.network"].splitlines()
    found = [line.partition("=")[::2] for line in lines if "=" in line]
    assert "Destination" not in {name for name, _ in found}, "default routes only"
    return _Wanted(
        mac=dict(found)["MACAddress"],
        addresses={value for name, value in found if name == "Address"},
        gateways={value for name, value in found if name == "Gateway"},
        dns=set(dict(found).get("DNS", "").split()),
    )


def _netplan(files: dict[str, str], number: int) -> _Wanted:
    [text] = files.values()
    found = json.loads(text)["network"]["ethernets"][f"secondsite{number}"]
    return _Wanted(
        mac=found["match"]["macaddress"],
        addresses=set(found["addresses"]),
        gateways={found[name] for name in ("gateway4", "gateway6") if name in found},
        dns=set(found.get("nameservers", {}).get("addresses", [])),
    )


def _network_manager(files: dict[str, str], number: int) -> _Wanted:
    read = configparser.ConfigParser()
    folder = "etc/NetworkManager/system-connections"
    read.read_string(files[f"{folder}/cloud-init-secondsite{number}.nmconnection"])
    families = [read[name] for name in ("ipv4", "ipv6") if name in read]
    entries = [(name, value) for family in families for name, value in family.items()]
    assert not [name for name, _ in entries if name.startswith("route")], "default routes only"
    return _Wanted(
        mac=read["ethernet"]["mac-address"],
        addresses={value for name, value in entries if name.startswith("address")},
        gateways={value for name, value in entries if name == "gateway"},
        dns={server for name, value in entries if name == "dns" for server in value.split(";") if server},
    )


def _eni(files: dict[str, str], number: int) -> _Wanted:
    text = files["etc/network/interfaces.d/50-cloud-init"]
    stanzas = [part for part in text.split("\n\n") if f"iface secondsite{number} " in part]
    lines = [line.split() for part in stanzas for line in part.splitlines() if line.startswith("    ")]
    [rule] = [
        line
        for line in files["etc/udev/rules.d/70-persistent-net.rules"].splitlines()
        if f'NAME="secondsite{number}"' in line
    ]
    return _Wanted(
        mac=rule.partition('ATTR{address}=="')[2][:17],
        addresses={words[1] for words in lines if words[0] == "address"},
        gateways={words[1] for words in lines if words[0] == "gateway"},
        dns={server for words in lines if words[0] == "dns-nameservers" for server in words[1:]},
    )


READ = {"networkd": _networkd, "netplan": _netplan, "network-manager": _network_manager, "eni": _eni}


def test_the_seed_is_found_by_its_label(tmp_path: Path) -> None:
    image = tmp_path / "seed.iso"
    image.write_bytes(drive.build(ONE.settings, ONE.built(), instance="i1"))
    # what cloud-init and its ds-identify ask of each device
    told = subprocess.run(["blkid", "-p", "-o", "export", image], capture_output=True, text=True, check=True)
    assert {"LABEL=cidata", "TYPE=iso9660"} <= set(told.stdout.splitlines())


# the script of machines without cloud-init

RUN = """
set -eu
for number in 0 1; do
    ip link add "eth$number" type veth peer name "peer$number"
    ip link set "peer$number" up
    ip link set "eth$number" address "52:54:00:00:00:0$((number + 1))"
done
ip addr add 203.0.113.5/24 dev eth0
"$@" || code=$?
echo "ended ${code:-0}"
ip -j addr show; printf '\\n===\\n'
ip -j route show default; printf '\\n===\\n'
ip -6 -j route show default; printf '\\n===\\n'
cat "$SECONDSITE_ROOT/etc/resolv.conf" "$SECONDSITE_ROOT/etc/hosts"
"""


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("case", [ONE, TWO, SIX], ids=["one", "two", "six"])
def test_the_script_sets_real_adapters(case: Case, shell: str, tmp_path: Path) -> None:
    here, root = tmp_path / "drive", tmp_path / "root"
    here.mkdir()
    for name, data in drive.script_files(case.settings, case.built(), instance="i1").items():
        (here / name).write_bytes(data)
    for number in range(2):  # adapters of this kind have no device beneath, which the script asks for
        (root / f"sys/class/net/eth{number}/device").mkdir(parents=True)
        (root / f"sys/class/net/eth{number}/address").write_text(_mac(number) + "\n")
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").write_text("nameserver 203.0.113.53\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", RUN, "sh", shell, here / drive.SCRIPT],
        env={"SECONDSITE_ROOT": str(root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ended 0" in done.stdout, done.stdout + done.stderr
    assert "problem" not in done.stdout
    addresses, routes, routes6 = done.stdout.partition("ended 0\n")[2].split("\n===\n")[:3]
    found = {
        link["address"]: {
            f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"
        }
        for link in json.loads(addresses)
    }
    for number, (own, _) in enumerate(case.adapters):
        assert found[_mac(number)] == set(own), "those of before are gone"
    gateways = {one["gateway"] for one in (*json.loads(routes or "[]"), *json.loads(routes6 or "[]"))}
    assert gateways == {gateway for _, these in case.adapters for gateway in these}
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("nameserver")] == [
        f"nameserver {server}" for server in case.dns or ("203.0.113.53",)
    ]
    assert ("search example.test" in [line.strip() for line in lines]) == bool(case.dns)
    for host in case.hosts:
        assert f"{host.address} {' '.join(host.names)}" in lines
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n", "no file of the machine is changed"
    assert (root / "run/secondsite/applied").read_text() == "i1\n"
