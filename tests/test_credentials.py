"""Files of passwords and certificates: whatever they are, neither loop nor memory suffers."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority

from gateway.credentials import LARGEST_PEM, Credentials, CredentialsError
from gateway.settings import LONGEST_TEXT, Broker, UplinkSettings


async def read(*, tls: bool = False, **files: Path) -> Credentials:
    settings = UplinkSettings(url=(Broker("127.0.0.1", 1, tls=tls),), **files)
    return await Credentials.read(settings, tls=tls)


def refusal(**arguments: Any) -> str:
    with pytest.raises(CredentialsError) as refused:
        asyncio.run(asyncio.wait_for(read(**arguments), 5))
    return str(refused.value)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """Return one that ends after a while, for a reader that hangs would hang up the tests."""
    file = tmp_path / "fifo"
    os.mkfifo(file)
    done = threading.Event()

    def end() -> None:
        while not done.wait(3):
            os.close(os.open(file, os.O_RDWR))

    ending = threading.Thread(target=end)
    ending.start()
    yield file
    done.set()
    ending.join()


@pytest.mark.parametrize("name", ["password_file", "ca_file", "cert_file"])
def test_what_is_no_regular_file_is_not_waited_for(name, fifo):
    assert refusal(tls=True, **{name: fifo}).startswith(f"{name} {fifo}: no regular file")


def test_nor_is_a_key_that_is_none(fifo, tmp_path):
    cert = Authority().issue(tmp_path / "cert.pem", "trd")
    assert f"key_file {fifo}: no reg" in refusal(tls=True, cert_file=cert, key_file=fifo)


@pytest.mark.parametrize(
    ("name", "most"),
    [("password_file", LONGEST_TEXT), ("ca_file", LARGEST_PEM), ("cert_file", LARGEST_PEM)],
)
def test_a_file_that_is_too_large_is_not_read_to_its_end(name, most, tmp_path):
    file = tmp_path / "file"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    assert refusal(tls=True, **{name: file}) == (
        f"{name} {file}: more than {most} bytes: is it the right file?"
    )


@pytest.mark.parametrize("held", [b"secret", b"secret\r\n", b"\xef\xbb\xbfsecret\n"])
def test_a_password_is_the_text_without_what_an_editor_adds(held, tmp_path):
    file = tmp_path / "password"
    file.write_bytes(held)
    assert asyncio.run(read(password_file=file)).password == b"secret"


@pytest.mark.parametrize("secret", [b" a b ", b"\xe4\xf6", bytes(range(256)), b"\xff\xfe\x00\xd8"])
def test_all_other_bytes_of_a_password_are_kept_whatever_they_are(secret, tmp_path):
    file = tmp_path / "password"
    file.write_bytes(secret + b"\n")
    assert asyncio.run(read(password_file=file)).password == secret


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (b"", "nothing in it: write the password there"),
        (b"\xef\xbb\xbf\r\n", "nothing in it: write the password there"),
        (b"secret\n\n", "several lines: leave the one with the password"),
        (b"trd-0042\r\nsecret\r\n", "several lines: leave the one with the password"),
        ("\ufeffsecret\r\n".encode("utf-16-le"), "UTF-16, which no broker expects: save it as UTF"),
        ("\ufeffsecret".encode("utf-16-be"), "UTF-16, which no broker expects: save it as UTF"),
    ],
)
def test_what_nobody_meant_by_a_password_is_told(held, says, tmp_path):
    file = tmp_path / "password"
    file.write_bytes(held)
    assert refusal(password_file=file).startswith(f"password_file {file}: {says}")


def test_files_that_hang_are_told_and_hold_up_no_loop(tmp_path):
    file = tmp_path / "password"
    file.write_text("secret")
    settings = UplinkSettings(url=(Broker("127.0.0.1", 1, tls=False),), password_file=file)
    go_on = threading.Event()

    async def scenario() -> None:
        pool = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(pool)
        hanging = pool.submit(go_on.wait)
        try:
            with pytest.raises(CredentialsError, match=f"{file}: not read within 0.05 s: on a dr"):
                await Credentials.read(settings, tls=False, within=0.05)
        finally:
            go_on.set()
        hanging.result()

    asyncio.run(scenario())
