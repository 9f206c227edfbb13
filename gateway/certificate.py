"""Whether TLS can succeed, as far as it is known here: dates of certificates and the clock.

A broker that refuses our certificate closes the connection without a word, whatever is wrong with
it (TLS 1.3; mosquitto does so with 1.2, too). So its dates are told before connecting, and a month
before they run out. Connecting is tried all the same: it is the broker's clock that decides.

The dates are read from the DER here. `ssl` shows those of CA certificates alone (`get_ca_certs`
leaves others out), the function that its tests use is private, and a library for ten lines would be
the largest of all.
"""

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.credentials import LARGEST_PEM, read_file
from gateway.measure import counted

WRITTEN = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock that is right shows less; raised with each release."""
AHEAD = timedelta(days=30)
_THERE = "there: it is read at the next connection"

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_UTC_TIME, _VERSION = 0x17, 0xA0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to be expected of TLS; None: there is nothing to say.

    Both texts name a remedy, and change once a day at most.
    """

    until: datetime | None = None
    """When our certificate, or one that comes with it, expires first."""
    fault: str | None = None
    """Why connecting fails, unless the broker's clock says otherwise."""
    notice: str | None = None
    """What will be at fault within AHEAD: our certificate, or all authorities that we know."""


def outlook(cert: Path | None, now: datetime, ca: Path | None = None) -> Outlook:
    """Return what this gateway's certificate, authorities and clock let expect; reads anew."""
    ours, theirs = _read(cert), _read(ca)
    since = max((since for since, _ in ours), default=now)
    until = min((until for _, until in ours), default=None)
    if now < WRITTEN:
        return Outlook(
            until,
            f"this box's clock says {now:%Y-%m-%d}, and this program was written on "
            f"{WRITTEN:%Y-%m-%d}: set the clock: is NTP reached (timedatectl)?",
        )
    if now < since:
        return Outlook(
            until,
            f"cert_file {cert} is not valid before {since:%Y-%m-%d %H:%M} UTC, and this box's "
            f"clock says {now:%Y-%m-%d}: set the clock (timedatectl), or get another",
        )
    last = max((until for _, until in theirs), default=None)
    ends = (
        (f"cert_file {cert}", until, f"put a renewed one {_THERE}"),
        (f"ca_file {ca}", last, f"put the present authority's {_THERE}"),
    )
    faults = [_expired(*end, now) for end in ends]
    notices = [_expires(*end, now) for end in ends]
    return Outlook(until, _joined(faults), _joined(notices))


def _read(file: Path | None) -> list[tuple[datetime, datetime]]:
    """Return the dates in a file, none where it will not do: connecting tells what is wrong."""
    try:
        return dates(read_file(file, LARGEST_PEM).decode(errors="replace")) if file else []
    except (OSError, ValueError):
        return []


def _expired(what: str, until: datetime | None, renew: str, now: datetime) -> str | None:
    if until is None or now <= until:
        return None
    when = f"{until:%Y-%m-%d %H:%M} UTC, and this box's clock says {now:%Y-%m-%d}"
    return f"{what} expired on {when}: {renew}"


def _expires(what: str, until: datetime | None, renew: str, now: datetime) -> str | None:
    if until is None or not now <= until <= now + AHEAD:
        return None
    days = (until - now).days
    return f"{what} expires on {until:%Y-%m-%d %H:%M} UTC, in {counted(days, 'day')}: {renew}"


def _joined(texts: list[str | None]) -> str | None:
    return "; ".join(filter(None, texts)) or None


def dates(pem: str) -> list[tuple[datetime, datetime]]:
    """Return since when and until when each certificate of a file is valid; raises ValueError."""
    blocks = re.findall(f"{_BEGIN}.*?{_END}", pem, re.DOTALL)
    try:
        found = [_dates(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]
    except IndexError:
        raise ValueError("a certificate is cut off") from None
    if not found:
        raise ValueError("no certificate")
    return found


def _dates(der: bytes) -> tuple[datetime, datetime]:
    # Source: RFC 5280 section 4.1
    #     Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version OPTIONAL, serialNumber,
    #         signature, issuer, validity SEQUENCE { notBefore, notAfter }, …
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _ in ("serialNumber", "signature", "issuer"):
        at = _element(der, at)[2]
    _, at, _ = _element(der, at)
    since = _element(der, at)
    return _time(der, *since), _time(der, *_element(der, since[2]))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at `at`, and where its content begins and ends."""
    tag, size, start = der[at], der[at + 1], at + 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start])
    return tag, start, start + size


def _time(der: bytes, tag: int, start: int, end: int) -> datetime:
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
