"""The list of what goes out follows from the configuration: server, proxy, gateways, object stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.uplink.outbound import traffic_of
from support.members import save_membership


def config(tmp_path: Path, **said: object) -> GatewayConfig:
    return GatewayConfig.model_validate(
        {
            "name": "gateway-a",
            "site": "a",
            "state_dir": tmp_path / "state",
            "cache_dir": tmp_path / "cache",
            "vault_key": tmp_path / "key",
            "tls": {"cert": tmp_path / "c", "key": tmp_path / "k", "ca": tmp_path / "a"},
            **said,
        }
    )


def to(found: GatewayConfig) -> list[tuple[str, str, int, str]]:
    return [(one.purpose, one.host, one.port, one.through) for one in traffic_of(found).outbound]


def enrolled(directory: Path, proxy: str | None = None) -> None:
    directory.mkdir()
    save_membership(directory, server="https://server.example", proxy=proxy)


def test_nothing_configured_goes_nowhere(tmp_path: Path) -> None:
    assert to(config(tmp_path, store=f"file://{tmp_path}/store")) == []
    # named, and not yet enrolled
    assert to(config(tmp_path, server={"directory": tmp_path / "tls"})) == []


def test_server_proxy_and_gateways(tmp_path: Path) -> None:
    enrolled(tmp_path / "tls", "http://proxy.example:8080")
    found = config(
        tmp_path,
        server={"directory": tmp_path / "tls"},
        peers={"gateway-b": "https://b.example:9444", "gateway-c": "https://[2001:db8::1]"},
        listen={"host": "192.0.2.1", "port": 9443},
    )
    assert to(found) == [
        ("the server", "server.example", 443, "http://proxy.example:8080"),
        ("the proxy to the server", "proxy.example", 8080, ""),
        ("gateway gateway-b", "b.example", 9444, ""),
        ("gateway gateway-c", "2001:db8::1", 9443, ""),
    ]
    [one] = traffic_of(found).inbound
    assert (one.host, one.port) == ("192.0.2.1", 9443)


def test_gateways_that_the_server_named(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    desired = {
        "version": 2,
        "generation": 3,
        "protections": [],
        "replicas": [],
        "peers": [
            {"name": "gateway-b", "url": "https://told.example:9443"},
            {"name": "gateway-d", "url": "https://d.example:9443"},
        ],
    }
    (tmp_path / "state" / "desired.json").write_text(json.dumps(desired))
    found = config(tmp_path, peers={"gateway-b": "https://b.example:9443"})
    assert [(one.host, one.source) for one in traffic_of(found).outbound] == [
        ("b.example", "[peers]"),  # the configuration wins, as in the gateway itself
        ("d.example", "said by the server"),
    ]


@pytest.mark.parametrize(
    ("store", "variables", "expected"),
    [
        ("s3://bucket/x", "AWS_REGION=eu-north-1", ("s3.eu-north-1.amazonaws.com", 443)),
        ("s3://bucket", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST=true", ("bucket.s3.us-east-1.amazonaws.com", 443)),
        ("s3://bucket", "AWS_ENDPOINT_URL=http://minio.example:9000", ("minio.example", 9000)),
        ("az://box", "AZURE_STORAGE_ACCOUNT_NAME=acme", ("acme.blob.core.windows.net", 443)),
    ],
)
def test_object_stores(
    tmp_path: Path,
    store: str,
    variables: str,
    expected: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "variables"
    file.write_text(variables + "\n")
    file.chmod(0o600)
    found = config(tmp_path, store=store, store_credentials=file)
    assert to(found) == [(f"the store {store}", *expected, "")]


def test_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enrolled(tmp_path / "tls")
    text = f"""
name = "gateway-a"
site = "a"
state_dir = "{tmp_path}/state"
cache_dir = "{tmp_path}/cache"
vault_key = "{tmp_path}/key"
[tls]
cert = "{tmp_path}/c"
key = "{tmp_path}/k"
ca = "{tmp_path}/a"
[server]
directory = "{tmp_path}/tls"
[listen]
port = 9443
"""
    (tmp_path / "gateway.toml").write_text(text)
    assert main(["gateway", "outbound", "--config", str(tmp_path / "gateway.toml")]) == Outcome.OK
    said = capsys.readouterr().out
    assert "server.example" in said
    assert "never disk content" in " ".join(said.split())
    assert "gateways of other sites connect to 0.0.0.0:9443" in said
    assert main(["gateway", "outbound", "--config", str(tmp_path / "gateway.toml"), "--json"]) == Outcome.OK
    assert json.loads(capsys.readouterr().out)["outbound"][0]["port"] == 443
