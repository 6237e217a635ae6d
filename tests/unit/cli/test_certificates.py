"""``secondsite certificate``: issue, renew only when told to, revoke, show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secondsite.cli.main import main
from secondsite.transfer.pki import read_certificate, revoked_serials
from secondsite.transfer.tls import TlsFiles, client_context, server_context


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["certificate", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, out, _ = run(capsys, "authority", tmp_path / "ca")
    assert code == 0
    assert "authority.crt" in out
    return tmp_path / "ca"


def issue(capsys: pytest.CaptureFixture[str], authority: Path, out: Path, *more: str) -> tuple[int, str, str]:
    return run(capsys, "issue", "gateway-a", "--authority", authority, "--out", out, *more)


def test_what_is_issued_serves_both_ends(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert issue(capsys, authority, out)[0] == 0
    assert (out / "gateway-a.key").stat().st_mode & 0o777 == 0o600
    files = TlsFiles(out / "gateway-a.crt", out / "gateway-a.key", out / "authority.crt", out / "revoked.pem")
    server_context(files)
    client_context(files)
    code, shown, _ = run(capsys, "show", out / "gateway-a.crt", "--json")
    facts = json.loads(shown)
    assert (code, facts["name"]) == (0, "gateway-a")
    assert 29 < facts["daysLeft"] <= 30


def test_a_certificate_is_renewed_only_when_told_to(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    issue(capsys, authority, tmp_path)
    before = (tmp_path / "gateway-a.crt").read_bytes()
    code, _, error = issue(capsys, authority, tmp_path)
    assert (code, "certificate.exists" in error) == (4, True)
    assert (tmp_path / "gateway-a.crt").read_bytes() == before
    assert issue(capsys, authority, tmp_path, "--replace", "--days", "7")[0] == 0
    assert (tmp_path / "gateway-a.crt").read_bytes() != before


def test_revoked_is_in_the_list(authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    issue(capsys, authority, tmp_path)
    assert run(capsys, "revoke", tmp_path / "gateway-a.crt", "--authority", authority)[0] == 0
    from cryptography import x509

    issuer = x509.load_pem_x509_certificate((authority / "authority.crt").read_bytes())
    serial = read_certificate(tmp_path / "gateway-a.crt").serial
    assert revoked_serials(authority / "revoked.pem", issuer) == {serial}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "/nonexistent.crt"), "there is no such file"),
        (("issue", "Not A Name", "--authority", "/x", "--out", "/x"), "not a DNS name"),
        (("issue", "g", "--authority", "/nonexistent", "--out", "/nonexistent"), "there is none"),
        (("issue", "g", "--authority", "/x", "--out", "/x", "--days", "0"), "not between 1 and 3650"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert why in error


def test_a_damaged_authority_is_told(
    authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (authority / "authority.key").write_text("damaged")
    code, _, error = issue(capsys, authority, tmp_path)
    assert code == 2
    assert "do not open" in error
