"""``secondsite certificate``: the small authority both sites trust, and a certificate for each gateway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json

if TYPE_CHECKING:
    from secondsite.transfer.pki import Authority


class CertificateExists(SecondsiteError):
    """Never replaced by accident: the gateway that uses it would be cut off."""

    code = "certificate.exists"
    outcome = Outcome.REFUSED
    happened = "No certificate was issued: {path} exists."
    cause = "A certificate for this gateway was issued into the directory before."
    action = "Add --replace to renew it, or give another --out directory."


def authority(directory: Path, /, *, name: str = "secondsite", listing: Listing = LISTING) -> None:
    """Make the authority that both sites trust.

    Its key signs the gateways' certificates: keep the directory on one machine, away from the gateways. They
    need only authority.crt and revoked.pem.

    For example:

        secondsite certificate authority /root/secondsite-authority

    Parameters
    ----------
    directory
        Where to make it (mode 0700). Must not hold an authority.
    name
        Shown in its certificate.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.transfer.pki import Authority

    made = Authority.create(directory, clock=SystemClock(), name=name)
    if listing.json:
        print_json({"certificate": str(made.certificate_path), "revoked": str(made.revoked_path)})
    else:
        print(f"the authority is in {directory}; give every gateway {made.certificate_path.name}")


def issue(
    name: str,
    /,
    *,
    authority: Path,
    out: Path,
    days: int = 30,
    replace: bool = False,
    listing: Listing = LISTING,
) -> None:
    """Issue a certificate for a gateway, with everything it needs beside it.

    Writes NAME.crt, NAME.key (mode 0600), authority.crt and revoked.pem. A running gateway takes a renewed
    certificate up by itself within a minute.

    For example:

        secondsite certificate issue gateway-a --authority /root/secondsite-authority --out for-gateway-a

        secondsite certificate issue gateway-a --authority /root/secondsite-authority --out T --replace

    Parameters
    ----------
    name
        The gateway's name in its configuration: a DNS name in lower case.
    authority
        Directory of the authority.
    out
        Directory to write to; made when it is not there.
    days
        How long it is valid.
    replace
        Renew: write over a certificate of the same name.
    """
    from secondsite.base.files import replace_file
    from secondsite.transfer.pki import AUTHORITY_CERTIFICATE, REVOKED, gateway_name

    gateway_name(name)
    if not 1 <= days <= 3650:
        raise InvalidInput(what=f"--days {days}", why="it is not between 1 and 3650")
    opened = _open(authority)
    if not replace and (out / f"{name}.key").exists():
        raise CertificateExists(path=out / f"{name}.key")
    certificate, key = opened.issue(name, days=days).save(out, name)
    replace_file(out / AUTHORITY_CERTIFICATE, opened.certificate_pem, mode=0o644)
    replace_file(out / REVOKED, opened.revoked_path.read_bytes(), mode=0o644)
    if listing.json:
        print_json({"certificate": str(certificate), "key": str(key), "days": days})
    else:
        print(f"{certificate} and its key are valid for {days} days")


def revoke(certificate: Path, /, *, authority: Path, listing: Listing = LISTING) -> None:
    """Revoke a gateway's certificate.

    Copy the authority's revoked.pem to every gateway afterwards; they take it up within a minute.

    For example:

        secondsite certificate revoke gateway-a.crt --authority /root/secondsite-authority

    Parameters
    ----------
    certificate
        The certificate's file.
    authority
        Directory of the authority.
    """
    from secondsite.transfer.pki import read_certificate

    opened = _open(authority)
    found = read_certificate(certificate)
    opened.revoke(found.serial)
    if listing.json:
        print_json({"serial": f"{found.serial:x}", "revoked": str(opened.revoked_path)})
    else:
        print(f"certificate {found.serial:x} of {found.name} is revoked")
        print(f"give every gateway {opened.revoked_path}")


def show(file: Path, /, *, listing: Listing = LISTING) -> None:
    """Show whose a certificate is and how long it is valid.

    For example:

        secondsite certificate show /etc/secondsite/tls/gateway-a.crt

    Parameters
    ----------
    file
        A certificate.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.transfer.pki import read_certificate

    found = read_certificate(file)
    days = (found.valid_until - SystemClock().utc()).total_seconds() / 86400
    if listing.json:
        print_json(
            {
                "name": found.name,
                "serial": f"{found.serial:x}",
                "validUntil": found.valid_until.isoformat(),
                "daysLeft": round(days, 2),
            }
        )
    else:
        left = f"{days:.1f} days left" if days > 0 else "expired"
        until = f"{found.valid_until:%Y-%m-%d %H:%M} UTC"
        print(f"{found.name}: serial {found.serial:x}, valid until {until}, {left}")


def _open(directory: Path) -> Authority:
    from secondsite.base.clock import SystemClock
    from secondsite.transfer.pki import Authority

    try:
        return Authority.load(directory, clock=SystemClock())
    except FileNotFoundError:
        raise InvalidInput(what=f"the authority {directory}", why="there is none") from None
    except (ValueError, TypeError) as error:
        raise InvalidInput(what=f"the authority {directory}", why=f"its files do not open: {error}") from None
