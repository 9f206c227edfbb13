"""What a gateway says of its certificate and its clock before a broker could."""

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import DAY, Authority
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.certificate import AHEAD, WRITTEN, Outlook, dates, outlook

SINCE, UNTIL = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2028, 2, 3, 4, 5, 6, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Authority().issue(tmp_path_factory.mktemp("pem") / "cert.pem", "trd", SINCE, UNTIL)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (SINCE, UNTIL),
        (datetime(1970, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (datetime(2050, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_the_dates_are_those_that_were_signed(since, until, tmp_path):
    # below 1970 and in both notations of X.509: two digits of the year up to 2049, four from there
    file = Authority().issue(tmp_path / "cert.pem", "trd", since, until)
    assert dates(file.read_text()) == [(since, until)]


def test_what_is_written_beside_a_certificate_may_be_no_utf_8(cert, tmp_path):
    (tmp_path / "latin-1.pem").write_bytes(b"subject=CN = Tr\xf8ndelag\n" + cert.read_bytes())
    assert outlook(tmp_path / "latin-1.pem", SINCE) == Outlook(UNTIL)


def test_a_certificate_of_version_1_bears_no_version(cert):
    der = x509.load_pem_x509_certificate(cert.read_bytes()).public_bytes(Encoding.DER)
    first = der.replace(b"\xa0\x03\x02\x01\x02", b"", 1)  # what holds it is shorter, but for that
    assert dates(ssl.DER_cert_to_PEM_cert(first)) == [(SINCE, UNTIL)]


def test_of_a_chain_what_ends_first_counts(tmp_path):
    city = Authority()
    one = city.issue(tmp_path / "one.pem", "one", SINCE, UNTIL).read_text()
    other = city.issue(tmp_path / "other.pem", "other", SINCE + DAY, UNTIL - DAY).read_text()
    for chain in (one + other, other + one):
        (tmp_path / "chain.pem").write_text(chain)
        assert outlook(tmp_path / "chain.pem", SINCE + DAY) == Outlook(UNTIL - DAY)
        assert "is not valid before" in outlook(tmp_path / "chain.pem", SINCE).fault


def test_damage_is_a_value_error(cert):
    text = cert.read_text()
    der = ssl.PEM_cert_to_DER_cert(text[: text.index("-----BEGIN PRIVATE")])
    end = der.index(b"280203040506Z") + len("280203040506")
    for bad in ("", "no", *(ssl.DER_cert_to_PEM_cert(der[:n]) for n in range(end))):
        with pytest.raises(ValueError, match=r"."):
            dates(bad)


@pytest.mark.parametrize(
    ("now", "fault", "notice"),
    [
        (SINCE, None, None),
        (UNTIL - AHEAD - SECOND, None, None),
        (UNTIL - AHEAD, None, "expires on 2028-02-03 04:05 UTC, in 30 days: put a renewed one"),
        (UNTIL - DAY, None, "in 1 day: "),
        (UNTIL, None, "in 0 days: "),
        (UNTIL + SECOND, "expired on 2028-02-03 04:05 UTC, and this box's clock says", None),
        (SINCE - SECOND, "is not valid before 2027-01-02 03:04 UTC, and this box's clock", None),
        (WRITTEN - SECOND, "clock says 2026-10-31, and this program was written on", None),
    ],
)
def test_it_says_what_is_wrong_or_will_be(now, fault, notice, cert):
    found = outlook(cert, now)
    assert found.until == UNTIL
    assert (found.fault is None, found.notice is None) == (fault is None, notice is None)
    assert (fault or notice or "") in (found.fault or found.notice or "")


def test_without_a_certificate_only_the_clock_is_looked_at(cert, tmp_path):
    assert outlook(None, SINCE) == Outlook()
    assert outlook(tmp_path / "none.pem", SINCE) == Outlook()
    assert "is NTP reached" in outlook(None, WRITTEN - SECOND).fault


@pytest.mark.parametrize(
    ("now", "fault", "notice"),
    [
        (UNTIL - AHEAD - SECOND, None, None),
        (UNTIL - 2 * DAY, None, "ca.pem expires on 2028-02-03 04:05 UTC, in 2 days: put the pres"),
        (UNTIL + SECOND, "ca.pem expired on 2028-02-03 04:05 UTC, and this box's clock", None),
    ],
)
def test_the_end_of_the_last_authority_is_told(now, fault, notice, tmp_path):
    first = Authority().write(tmp_path / "first.pem", UNTIL - 60 * DAY).read_text()
    (tmp_path / "ca.pem").write_text(first + Authority().write(tmp_path / "x", UNTIL).read_text())
    found = outlook(None, now, tmp_path / "ca.pem")
    assert (found.until, found.fault is None, found.notice is None) == (
        *(None, fault is None, notice is None),
    )
    assert (fault or notice or "") in (found.fault or found.notice or "")


def test_what_is_wrong_with_our_certificate_and_the_authority_is_told_in_one(cert, tmp_path):
    ca = Authority().write(tmp_path / "ca.pem", UNTIL)
    found = outlook(cert, UNTIL - DAY, ca)
    assert found.notice.count("in 1 day: put ") == 2
    assert outlook(cert, UNTIL + DAY, ca).fault.count(" expired on ") == 2
    assert outlook(cert, UNTIL - 90 * DAY, tmp_path / "none.pem") == Outlook(UNTIL)


def test_neither_a_fifo_nor_a_huge_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert outlook(tmp_path / "fifo", SINCE) == outlook(tmp_path / "huge", SINCE) == Outlook()
