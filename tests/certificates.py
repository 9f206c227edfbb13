"""Certificates of a city's own authority, with the dates that a test needs."""

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


@dataclass
class Authority:
    """Signs certificates for 127.0.0.1; `pem` is its own."""

    name: str = "city"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def issue(
        self, file: Path, common: str, since: datetime = NOW - DAY, until: datetime = NOW + 90 * DAY
    ) -> Path:
        """Write a certificate and behind it its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(common, key.public_key(), since, until, ca=False)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(cert + secret)
        return file

    def write(self, file: Path, until: datetime = NOW + 1000 * DAY) -> Path:
        """Write its own certificate."""
        since = min(NOW, until) - 1000 * DAY
        file.write_bytes(self._sign(self.name, self.key.public_key(), since, until, ca=True))
        return file

    def _sign(
        self, common: str, public: ec.EllipticCurvePublicKey, *dates: datetime, ca: bool
    ) -> bytes:
        since, until = dates
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(common))
            .issuer_name(_name(self.name))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)
