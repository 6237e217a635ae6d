"""The small authority: what it issues, what it refuses, and its revocation list."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput
from secondsite.transfer.certificates import LEAF_DAYS
from secondsite.transfer.pki import Authority, gateway_name, revoked_serials


def test_a_leaf_names_its_gateway_and_lives_thirty_days(tmp_path: Path) -> None:
    clock = FakeClock()
    authority = Authority.create(tmp_path, clock=clock)
    leaf = x509.load_pem_x509_certificate(authority.issue("gateway-a.site-a").certificate_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway-a.site-a"]
    assert leaf.not_valid_after_utc - clock.utc() == timedelta(days=LEAF_DAYS)
    assert leaf.not_valid_before_utc < clock.utc()
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, clock=FakeClock())
    leaf = authority.issue("gateway-a")
    _, key = leaf.save(tmp_path / "leaves", "gateway-a")
    for path in (key, tmp_path / "authority.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(leaf)


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    first = Authority.create(tmp_path, clock=FakeClock()).certificate_pem
    with pytest.raises(InvalidInput):
        Authority.create(tmp_path, clock=FakeClock())
    assert Authority.load(tmp_path, clock=FakeClock()).certificate_pem == first


def test_revocations_add_up_and_survive_loading(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, clock=FakeClock())
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    assert revoked_serials(authority.revoked_path, issuer) == frozenset()
    authority.revoke(17)
    Authority.load(tmp_path, clock=FakeClock()).revoke(18)
    Authority.load(tmp_path, clock=FakeClock()).revoke(17)
    assert revoked_serials(authority.revoked_path, issuer) == {17, 18}


def test_a_list_of_another_authority_or_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "a", clock=FakeClock())
    other = Authority.create(tmp_path / "b", clock=FakeClock())
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    with pytest.raises(InvalidInput, match="not signed"):
        revoked_serials(other.revoked_path, issuer)
    authority.revoked_path.write_bytes(authority.revoked_path.read_bytes()[:-60])
    with pytest.raises(InvalidInput):
        revoked_serials(authority.revoked_path, issuer)


@pytest.mark.parametrize("name", ["", "Gateway", "a b", "a/b", "-a", "a-", "a..b", "x" * 201, "a\n"])
def test_names_that_no_certificate_may_have(name: str) -> None:
    with pytest.raises(InvalidInput):
        gateway_name(name)
