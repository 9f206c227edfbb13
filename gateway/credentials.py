"""Password, certificates and authority, read from their files anew at each connection.

All of it off the event loop, of regular files only and no more than a bound: a FIFO, a file of
2 GiB or a network drive that hangs must hold up neither readings nor the end of the daemon.
"""

import asyncio
import codecs
import re
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from gateway.settings import LONGEST_TEXT, UplinkSettings

T = TypeVar("T")

READ_WITHIN = 10.0
"""Seconds that files may take, which then lie on a drive that hangs."""
LARGEST_PEM = 1 << 20
"""Five times the authorities of a whole system."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class CredentialsError(Exception):
    """A file will not do; the text says which, what is wrong with it, and what mends it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this gateway shows a broker, and how it knows that one."""

    password: bytes | None = None
    tls: ssl.SSLContext | None = None

    @classmethod
    async def read(
        cls, settings: UplinkSettings, *, tls: bool, within: float = READ_WITHIN
    ) -> Self:
        """Read what the settings name; raises CredentialsError."""
        try:
            return await off_the_loop(lambda: cls._read(settings, tls), within)
        except TimeoutError:
            names = ("password_file", "ca_file", "cert_file", "key_file")
            files = ", ".join(str(file) for name in names if (file := getattr(settings, name)))
            raise CredentialsError(
                f"{files or 'the authorities of this system'}: not read within {within:g} s: "
                "on a drive that hangs?"
            ) from None

    @classmethod
    def _read(cls, settings: UplinkSettings, tls: bool) -> Self:
        secret = settings.password_file
        return cls(_password(secret) if secret else None, _tls(settings) if tls else None)


async def off_the_loop(read: Callable[[], T], within: float = READ_WITHIN) -> T:
    """Return what `read` does, in a thread that connections are made in; raises TimeoutError."""
    async with asyncio.timeout(within):
        return await asyncio.get_running_loop().run_in_executor(None, read)


def read_file(file: Path, most: int) -> bytes:
    """Return what a regular file holds; raises OSError, and ValueError when it holds more.

    What is none is not even opened: that alone makes a FIFO wait, and a watchdog bite.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError("no regular file")
    with file.open("rb") as opened:
        held = opened.read(most + 1)
    if len(held) > most:
        raise ValueError(f"more than {most} bytes: is it the right file?")
    return held


def _password(file: Path) -> bytes:
    """Return what the file holds but a byte order mark and one line end, which editors add.

    To MQTT a password is bytes, of any encoding or none.
    """
    try:
        held = read_file(file, LONGEST_TEXT)
        secret = re.sub(rb"\r?\n\Z", b"", held.removeprefix(codecs.BOM_UTF8))
        _check_password(secret)
    except (OSError, ValueError) as error:
        raise CredentialsError(_bad_file("password_file", file, error)) from error
    return secret


def _check_password(secret: bytes) -> None:
    """Raise ValueError when that is not what somebody meant by a password."""
    if not secret:
        raise ValueError("nothing in it: write the password there")
    if secret.startswith(_UTF_16) and secret.decode("utf-16", errors="replace").isascii():
        raise ValueError("UTF-16, which no broker expects: save it as UTF-8")
    if b"\n" in secret and "\ufffd" not in secret.decode(errors="replace"):
        raise ValueError("several lines: leave the one with the password")


def _tls(settings: UplinkSettings) -> ssl.SSLContext:
    try:
        if settings.ca_file:
            read_file(settings.ca_file, LARGEST_PEM)
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        raise CredentialsError(_bad_file("ca_file", settings.ca_file, error)) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file:
        _show_certificate(context, settings.cert_file, settings.key_file)
    return context


def _show_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    at_fault = ("cert_file", cert)
    try:
        read_file(cert, LARGEST_PEM)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
        if key:
            at_fault = ("key_file", key)
            read_file(key, LARGEST_PEM)
        context.load_cert_chain(cert, key, password="")  # else it asks for one at the terminal
    except (OSError, ValueError) as error:
        raise CredentialsError(_bad_file(*at_fault, error)) from error


def _bad_file(name: str, file: Path | None, error: Exception) -> str:
    """Return which file is at fault, what is wrong with it, and what mends it."""
    match error:
        case FileNotFoundError():
            remedy = f"there is no such file: put it there, or set [uplink] {name}"
        case PermissionError():
            remedy = f"no permission: sudo chgrp bygate {file} && sudo chmod g+r {file}"
        case ssl.SSLError():
            remedy = _PEM[name]
        case ValueError():
            remedy = str(error)
        case _:
            remedy = f"{error}: set [uplink] {name} to a file"
    return f"{name} {file}: {remedy}"


_PEM = {
    "ca_file": "no PEM certificate in it: copy it anew",
    "cert_file": "no PEM certificate with its private key in it: copy it anew, or set key_file",
    "key_file": "not the PEM key of cert_file, or locked by a passphrase: copy the one without",
}
