"""What a BTHome sensor says that encrypts. Source: bthome.io/encryption, whose example this is."""

from cryptography.hazmat.primitives.ciphers.aead import AESCCM

KEY = "231d39c1d7cc1ab1aee224cd096db932"
ADDRESS = "54:48:E6:8F:80:A5"


def sealed(plain, counter, key=KEY):
    """Return the service data of 0xFCD2."""
    count = counter.to_bytes(4, "little")
    nonce = bytes.fromhex(ADDRESS.replace(":", "")) + b"\xd2\xfc\x41" + count
    data = AESCCM(bytes.fromhex(key), 4).encrypt(nonce, plain, None)
    return b"\x41" + data[:-4] + count + data[-4:]
