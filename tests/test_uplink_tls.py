"""TLS with a real mosquitto: who is let in, what is said to whom is not, and rotation."""

import asyncio
import contextlib
import gc
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jumping
import pytest
from certificates import DAY, NOW, Authority
from delivery import Box, delivering, run, until
from mosquitto import Mosquitto
from saying import saying
from tenacity import wait_fixed

from gateway.credentials import Credentials
from gateway.settings import Broker as Address
from gateway.settings import UplinkSettings
from hil.broker import Broker
from hil.valve import Valve

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")
"""paho leaves the socket of a handshake that failed to the garbage collector."""

AT_ONCE = wait_fixed(0.02)


class Site:
    """A directory with what a broker and a gateway need for TLS, by one authority or another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.city, self.other = Authority("city"), Authority("other")
        self.trust(self.city)
        self.city.issue(self.server, "broker")
        self.city.issue(self.client, "one")

    @property
    def server(self) -> Path:
        return self.directory / "server.pem"

    @property
    def client(self) -> Path:
        return self.directory / "client.pem"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def trust(self, authority: Authority) -> None:
        authority.write(self.ca)
        authority.write(self.directory / "brokers-ca.pem")

    @property
    def lines(self) -> str:
        return (
            f"cafile {self.directory}/brokers-ca.pem\ncertfile {self.server}\n"
            f"keyfile {self.server}\nrequire_certificate true\nuse_identity_as_username true"
        )

    def box(self, port: int, host: str = "127.0.0.1", wait: Any = AT_ONCE, **options: Any) -> Box:
        settings = {"ca_file": self.ca, "cert_file": self.client, **options}
        address = Address(host, port, tls=True)
        return Box(self.directory / "state", address, settings=settings, wait=wait)


@contextlib.asynccontextmanager
async def listening(site: Site, *lines: str) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(site.directory, "\n".join([site.lines, *lines]))
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()
        gc.collect()


def refusal(site: Site, says: str, host: str = "127.0.0.1", **options: Any) -> None:
    async def scenario() -> None:
        async with listening(site) as broker:
            box = site.box(broker.port, host, **options)
            await box.seal()
            async with delivering(box):
                await until(lambda: says in (box.state.why or ""))
            assert not box.delivered

    run(scenario())


def test_a_certificate_that_expired_is_told_with_the_failure(tmp_path):
    site = Site(tmp_path)
    site.city.issue(site.client, "one", NOW - 9 * DAY, NOW - DAY)
    refusal(site, f"cert_file {site.client} expired on {NOW - DAY:%Y-%m-%d %H:%M} UTC")


def test_a_certificate_that_is_not_valid_yet_is_told_with_the_failure(tmp_path):
    site = Site(tmp_path)
    site.city.issue(site.client, "one", NOW + DAY, NOW + 9 * DAY)
    refusal(site, "set the clock (timedatectl), or get another")


def test_a_certificate_that_is_missing_is_told_with_the_failure(tmp_path):
    refusal(Site(tmp_path), "or want cert_file?", cert_file=None)


def test_a_broker_of_another_authority_is_not_trusted(tmp_path):
    site = Site(tmp_path)
    site.other.write(site.ca)
    refusal(site, "give the authority that signed the broker's as ca_file")


def test_a_broker_of_another_name_is_not_trusted(tmp_path):
    site = Site(tmp_path)
    refusal(site, "write the name in url as it stands in the certificate", "localhost")


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [(-9, -1, "renew the broker's, or set this box's clock"), (1, 9, "is this box's clock right")],
)
def test_a_broker_whose_certificate_is_not_valid_now_is_not_trusted(since, until, says, tmp_path):
    site = Site(tmp_path)
    site.city.issue(site.server, "broker", NOW + since * DAY, NOW + until * DAY)
    refusal(site, says)


def test_a_broker_of_tls_1_1_is_refused(tmp_path):
    site = Site(tmp_path)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(site.server)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1

    def shake_hands(server: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), server.accept()[0] as link:
            old.wrap_socket(link, server_side=True)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            box = site.box(server.getsockname()[1], wait=wait_fixed(60))
            async with delivering(box):
                await asyncio.to_thread(shake_hands, server)
                await until(lambda: box.state.why)
                assert box.state.why.endswith(": the broker must speak TLS 1.2 or 1.3")
        gc.collect()

    run(scenario())


def test_a_broker_that_speaks_no_tls_is_never_spoken_to_in_the_clear(tmp_path):
    async def scenario() -> None:
        async with Broker() as plain:
            site = Site(tmp_path)
            box = site.box(plain.port)
            await box.seal()
            tried: list[float] = []
            box.uplink._wait = lambda state: tried.append(0) or 0.01
            async with delivering(box):
                await until(lambda: len(tried) > 3)
            assert plain.connects == 0
            assert not plain.received

    run(scenario())


def test_a_port_that_never_answers_in_tls_is_given_up_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", 0.3)

    async def scenario() -> None:
        async with saying(b"") as silent:
            box = Site(tmp_path).box(silent.port, wait=wait_fixed(60))
            async with delivering(box):
                await until(lambda: box.state.why, within=4)
                assert "no TLS is spoken there" in box.state.why
            gc.collect()

    run(scenario())


def test_a_broker_is_reached_though_its_tls_takes_longer_than_keepalive(tmp_path):
    async def scenario() -> None:
        site = Site(tmp_path)
        async with listening(site) as broker, Valve(broker.port, delay=0.6) as far:
            box = site.box(far.port, keepalive=1.0)
            await box.seal()
            async with delivering(box):
                await box.empty()

    run(scenario())


def test_certificates_and_authority_are_read_anew_at_each_connection(tmp_path):
    async def scenario() -> None:
        site = Site(tmp_path)
        async with listening(site) as broker:
            box = site.box(broker.port)
            await box.seal()
            async with delivering(box):
                await box.empty()
                assert "u'one')" in broker.log
                await broker.kill()
                site.trust(site.other)
                site.other.issue(site.server, "broker")
                site.other.issue(site.client, "two")
                await box.seal(3)
                await broker.start()
                await box.empty()
                assert "u'two')" in broker.log

    run(scenario())


def test_the_password_is_read_anew_at_each_connection_to_a_real_broker(tmp_path):
    async def scenario() -> None:
        site = Site(tmp_path)
        users, secret = tmp_path / "users", tmp_path / "password"
        password(users, "first")
        secret.write_text("first\n")
        lines = f"password_file {users}\nallow_anonymous false"
        async with listening(site, lines) as broker:
            broker.lines = broker.lines.replace("use_identity_as_username true", "")
            await broker.kill()
            await broker.start()
            box = site.box(broker.port, username="trd-0042", password_file=secret)
            await box.seal()
            async with delivering(box):
                await box.empty()
                password(users, "second")
                await broker.kill()
                await broker.start()
                await until(lambda: "check [uplink] username and password_" in str(box.state.why))
                await box.seal()
                secret.write_text("second\n")
                await box.empty()

    run(scenario())


def password(users: Path, secret: str) -> None:
    subprocess.run(["mosquitto_passwd", "-c", "-b", users, "trd-0042", secret], check=True)


def test_the_end_of_a_certificate_is_announced_once_a_day_for_thirty_days(tmp_path, caplog):
    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(jumping.Inline())
        city = Authority()
        city.issue(tmp_path / "cert.pem", "one", NOW, NOW + 60 * DAY)
        settings = {"cert_file": tmp_path / "cert.pem"}
        begin = NOW.timestamp() - jumping.now()
        box = Box(
            tmp_path / "state",
            Address("127.0.0.1", 1, tls=True),
            settings=settings,
            now=lambda: begin + jumping.now(),
        )
        await jumping.for_seconds(29 * 86_400, box.uplink.watch())
        assert not caplog.messages
        await jumping.for_seconds(21 * 86_400, box.uplink.watch())
        assert len(caplog.messages) == 21
        assert "in 29 days: put a renewed one there" in caplog.messages[1]
        assert box.state.outlook.until == NOW + 60 * DAY
        caplog.clear()
        city.issue(tmp_path / "cert.pem", "one", NOW, NOW + 400 * DAY)
        await jumping.for_seconds(40 * 86_400, box.uplink.watch())
        assert not caplog.messages, "it was renewed"

    jumping.run(main())


def test_a_certificate_on_a_drive_that_hangs_is_no_end_of_the_daemon(tmp_path):
    go_on = threading.Event()

    async def main() -> None:
        pool = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(pool)
        pool.submit(go_on.wait)
        Authority().issue(tmp_path / "cert.pem", "one", NOW, NOW + 60 * DAY)
        settings = {"cert_file": tmp_path / "cert.pem"}
        there = Address("127.0.0.1", 1, tls=True)
        box = Box(tmp_path / "state", there, settings=settings)
        try:
            await jumping.for_seconds(1800, box.uplink.watch())
            assert box.state.outlook.until is None
        finally:
            go_on.set()

    jumping.run(main())


def test_an_authority_that_expired_is_told_with_the_failure(tmp_path):
    site = Site(tmp_path)
    site.city.write(site.ca, NOW - DAY)
    refusal(site, f"; ca_file {site.ca} expired on {NOW - DAY:%Y-%m-%d %H:%M} UTC")


def test_a_clock_that_cannot_be_right_is_told_where_tls_works_all_the_same(tmp_path, caplog):
    async def scenario() -> None:
        site = Site(tmp_path)
        async with listening(site) as broker:
            box = site.box(broker.port)
            box.uplink._now = lambda: datetime(2020, 1, 1, tzinfo=UTC).timestamp()
            await box.seal()
            async with delivering(box):
                await box.empty()
                watching = asyncio.create_task(box.uplink.watch())
                box.uplink._now = lambda: datetime(2020, 1, 2, tzinfo=UTC).timestamp()
                await until(lambda: "clock says 2020-01-02" in caplog.text)
                watching.cancel()

    run(scenario())


def test_a_clock_that_cannot_be_right_is_not_why_a_connection_that_was_made_is_lost(tmp_path):
    async def scenario() -> None:
        site = Site(tmp_path)
        async with listening(site) as broker:
            box = site.box(broker.port, wait=wait_fixed(60))
            box.uplink._now = lambda: datetime(2020, 1, 1, tzinfo=UTC).timestamp()
            async with delivering(box):
                await until(lambda: box.state.connected)
                await broker.kill()
                await until(lambda: "connection lost: " in (box.state.why or ""))
                assert "clock" not in box.state.why

    run(scenario())


def test_tls_is_1_2_at_least_where_python_leaves_that_to_openssl(monkeypatch):
    """So is Debian's built, which a Raspberry Pi has; that of others takes no less by default."""
    usual = ssl.create_default_context

    def as_debians(**arguments: Any) -> ssl.SSLContext:
        context = usual(**arguments)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_debians)
    settings = UplinkSettings(url=(Address("a", 1, tls=True),))
    context = asyncio.run(Credentials.read(settings, tls=True)).tls
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
