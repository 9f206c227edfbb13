"""The key of a device that encrypts what it says: read once, shown nowhere."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # of the extra ble-encrypted, imported when a key is read
    from cryptography.hazmat.primitives.ciphers.aead import AESCCM

HIDDEN = "(hidden)"
"""What stands for a key wherever settings are shown."""


class Key:
    """An AES key of 128 bits, given as 32 hexadecimal digits; it can decrypt, and tells nothing."""

    __slots__ = ("_cipher",)

    def __init__(self, text: object) -> None:
        """Raise ValueError without a word of what was given, and where cryptography is missing."""
        if not (isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{32}", text)):
            raise ValueError(f"expected 32 hexadecimal digits in quotes, got {_kind(text)}")
        self._cipher = _cipher(bytes.fromhex(text))

    def __repr__(self) -> str:
        return f"Key{HIDDEN}"

    def decrypted(self, nonce: bytes, sealed: bytes) -> bytes | None:
        """Return what AES-CCM sealed, its check of 4 bytes at the end; None where that is wrong."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above

        try:
            return self._cipher.decrypt(nonce, sealed, None)
        except InvalidTag:
            return None


def _cipher(key: bytes) -> "AESCCM":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM  # noqa: PLC0415 - as above
    except ImportError:
        missing = "needs the package cryptography: pip install 'bygate[ble-encrypted]'"
        raise ValueError(missing) from None
    return AESCCM(key, tag_length=4)


def _kind(text: object) -> str:
    if not isinstance(text, str):
        return "a number without quotes" if type(text) in (int, float) else "something else"
    if re.search(r"[\s:-]", text):
        return "spaces, ':' or '-' among them"
    wrong = re.search("[^0-9a-fA-F]", text)
    return "other characters among them" if wrong else f"{len(text)}"
