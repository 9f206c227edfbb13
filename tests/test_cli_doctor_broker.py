"""`bygate doctor` with brokers: what each says of it, and what it leaves there."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from certificates import DAY, NOW, Authority
from delivery import run, until
from gateway_process import ROOT, gateway, sensor
from mosquitto import Mosquitto
from saying import black_hole, resolves, saying
from test_buffer import opened, take
from test_cli_buffer import contents
from test_cli_doctor import config

from gateway.about import about
from gateway.cli.doctor import examine
from gateway.cli.doctor_network import Network
from gateway.cli.finding import Finding, Told
from gateway.config import load
from gateway.disk import LOCK, Disk
from gateway.settings import UplinkSettings
from gateway.wire import decode
from hil.broker import Broker, Faults, Limits

pytestmark = pytest.mark.filterwarnings("ignore:unclosed")
"""paho leaves the socket of a handshake that failed to the garbage collector."""

ROOT_TOPIC = "bygate/v1/trd-0042"
BACKLOG = f"{ROOT_TOPIC}/batch/backlog"
PATIENCE = 5.0
SOON = 0.2


def seal(directory: Path, *values: float) -> bytes:
    """Have batches wait on disk, and return the last one's bytes."""
    held = opened(directory / "state")
    for value in values or (1.0,):
        take(held, value)
        held.close()
    *_, last = held.waiting()
    return held.payload(last)


async def findings(
    directory: Path, url: str, more: str = "", within: float = PATIENCE
) -> dict[str, Finding]:
    """Return what is found of brokers, by check; of several the last one's."""
    found: list[Finding] = []
    await examine(load(config(directory, url, more)), found.append, within=within)
    gc.collect()
    return {each.check: each for each in found if each.broker}


def states(found: dict[str, Finding]) -> dict[str, str]:
    return {check: each.state for check, each in found.items()}


def fault(found: dict[str, Finding], check: str, says: str) -> None:
    """Check that it is the last, and a fault with that text."""
    assert list(found)[-1] == check, found
    assert found[check].state == "fail"
    assert says in str(found[check])


# All is well


def test_the_whole_way_to_a_real_mosquitto(tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            payload = seal(tmp_path, 1.0, 2.0)
            before = contents(tmp_path / "state")
            found = await findings(tmp_path, broker.url)
            assert states(found) == dict.fromkeys(("dns", "tcp", "login", "about", "batch"), "ok")
            expected = about(load(config(tmp_path, broker.url)))
            assert await broker.message() == (False, f"{ROOT_TOPIC}/about", expected)
            assert await broker.message() == (False, BACKLOG, payload)
            assert await broker.retained(f"{ROOT_TOPIC}/about") == expected
            assert contents(tmp_path / "state") == before
            assert "Received DISCONNECT from trd-0042\n" in broker.log
            assert f"{ROOT_TOPIC}/status" not in broker.log

    run(scenario())


def test_the_seen_text_has_limits_code_and_name(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(receive_maximum=3)) as broker:
            batch = decode(seal(tmp_path))
            found = await findings(tmp_path, broker.url)
            says = " as client 'trd-0042'; it takes 3 messages at once, packets of at most 1048576 "
            assert says in found["login"].seen
            assert f"{ROOT_TOPIC}/about: PUBACK 0x10 after" in found["about"].seen
            name = f", batch {batch.sequence} of epoch {batch.epoch}"
            assert found["batch"].seen.endswith(name)

    run(scenario())


def test_json_lines_are_sent_where_those_are_set(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            seal(tmp_path)
            await findings(tmp_path, broker.url, 'encoding = "json"\n')
            (sent,) = (each for each in broker.received if each.topic == BACKLOG)
            assert json.loads(sent.payload)["value"] == 1.0
            assert sent.properties["content_type"] == "application/x-ndjson"

    run(scenario())


def test_a_version_that_tells_less_is_said_to(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url, 'protocol = "3.1.1"\n')
            assert found["batch"].state == "ok"
            assert "MQTT 3.1.1 does not say whether it was kept" in found["batch"].seen

    run(scenario())


def test_each_broker_of_a_list_is_looked_at(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            file = config(tmp_path, broker.url)
            file.write_text(
                file.read_text().replace(
                    f'"{broker.url}"', f'["mqtt://127.0.0.1:1", "{broker.url}"]'
                )
            )
            found: list[Finding] = []
            await examine(load(file), found.append)
            assert [(each.broker, each.check) for each in found if each.state == "fail"] == [
                ("mqtt://127.0.0.1:1", "tcp")
            ]
            assert broker.connects == 1

    run(scenario())


# The network


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
def test_a_name_that_cannot_be_resolved(host, tmp_path):
    found = asyncio.run(findings(tmp_path, f"mqtt://{host}"))
    fault(found, "dns", host)
    assert found["dns"].remedy


def test_a_network_that_swallows_everything(tmp_path):
    async def scenario() -> None:
        with black_hole() as (host, port):
            found = await findings(tmp_path, f"mqtt://{host}:{port}", within=SOON)
        says = "timed out after 0.2 s: no answer: check [uplink] url, firewall and network"
        fault(found, "tcp", says)

    run(scenario())


def test_an_address_that_is_silent_before_one_that_answers_is_warned_of():
    async def scenario() -> None:
        found: list[Finding] = []
        async with Broker() as broker:
            told = Told(found.append, broker.url)
            network = Network(None, UplinkSettings(url=()), told, within=SOON)
            with black_hole() as silent:
                good = (broker.host, broker.port)
                link = await network._reach([(socket.AF_INET, a) for a in (silent, good)])
            link.close()
        assert found[0].state == "warn"
        assert "timed out after 0.2 s; 127.0.0.1" in found[0].seen

    run(scenario())


@pytest.mark.parametrize(("silent", "within"), [(1, 1.2), (3, 0.4)])
def test_a_broker_behind_silent_addresses_is_logged_in_to(silent, within, tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", within)

    async def scenario() -> None:
        async with Broker() as broker:
            seal(tmp_path)
            with black_hole() as hole:
                resolves(monkeypatch, "far.test", *[hole] * silent, (broker.host, broker.port))
                url = f"mqtt://far.test:{broker.port}"
                found = await findings(tmp_path, url, 'keepalive = "1s"\n', within)
            assert (found["tcp"].state, found["login"].state) == ("warn", "ok"), found

    run(scenario())


# TLS


class Site:
    """What a broker with TLS and a gateway need, in one directory."""

    def __init__(self, directory: Path, days: float = 90) -> None:
        self.city, self.server = Authority(), directory / "server.pem"
        self.city.write(directory / "ca.pem")
        self.city.issue(self.server, "broker", NOW - 9 * DAY, NOW + days * DAY)
        self.settings = f'ca_file = "{directory}/ca.pem"\n'

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Broker]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        async with Broker(tls=context) as broker:
            yield broker


def secured(directory: Path, site: Site, host: str = "127.0.0.1") -> dict[str, Finding]:
    async def scenario() -> dict[str, Finding]:
        async with site.listening() as broker:
            return await findings(directory, f"mqtts://{host}:{broker.port}", site.settings)

    return asyncio.run(asyncio.wait_for(scenario(), 20))


def test_tls_is_told_with_its_version_and_the_end_of_the_brokers_certificate(tmp_path):
    found = secured(tmp_path, Site(tmp_path))
    assert found["tls"].state == "ok"
    assert "TLSv1.3 after " in found["tls"].seen
    assert found["tls"].seen.endswith(f"valid until {NOW + 90 * DAY:%Y-%m-%d}")
    assert found["login"].state == "ok"


def test_a_brokers_certificate_that_expires_soon_is_warned_of(tmp_path):
    found = secured(tmp_path, Site(tmp_path, days=20))
    assert found["tls"].state == "warn"
    assert "it expires in 19 days: have the broker's certificate renewed" in str(found["tls"])
    assert found["login"].state == "ok"


def test_a_brokers_certificate_that_has_expired(tmp_path):
    fault(secured(tmp_path, Site(tmp_path, days=-1)), "tls", "renew the broker's, or set this box")


def test_an_authority_that_is_not_known(tmp_path):
    site = Site(tmp_path)
    Authority("other").write(tmp_path / "ca.pem")
    fault(secured(tmp_path, site), "tls", "give the authority that signed the broker's as ca_file")


def test_a_broker_of_another_name(tmp_path):
    says = "write the name in url as it stands in the certificate"
    fault(secured(tmp_path, Site(tmp_path), "localhost"), "tls", says)


def test_a_certificate_of_ours_that_is_missing(tmp_path):
    site = Site(tmp_path)

    async def scenario() -> None:
        lines = f"cafile {tmp_path}/ca.pem\ncertfile {site.server}\nkeyfile {site.server}"
        broker = Mosquitto(tmp_path, f"{lines}\nrequire_certificate true")
        await broker.start()
        url = f"mqtts://127.0.0.1:{broker.port}"
        found = await findings(tmp_path, url, site.settings)
        await broker.kill()
        fault(found, "login", "want cert_file")

    run(scenario())


def test_a_broker_that_speaks_no_tls(tmp_path):
    async def scenario() -> None:
        Site(tmp_path)
        async with Broker() as broker:
            url = f"mqtts://127.0.0.1:{broker.port}"
            found = await findings(tmp_path, url, f'ca_file = "{tmp_path}/ca.pem"\n', within=SOON)
            fault(found, "tls", "is it the right port?")
            assert broker.connects == 0

    run(scenario())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)), b""])
@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_what_answers_anything_else_is_no_end(tmp_path, answer, close, scheme):
    async def scenario() -> None:
        async with saying(answer, close=close) as broker:
            url = f"{scheme}://127.0.0.1:{broker.port}"
            found = await findings(tmp_path, url, within=SOON)
            fault(found, "tls" if scheme == "mqtts" else "login", "")
            assert found[list(found)[-1]].remedy

    run(scenario())


# Login


def test_a_broker_that_says_nothing(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(connack_withheld=True)) as broker:
            found = await findings(tmp_path, broker.url, within=SOON)
            fault(found, "login", "Operation timed out: connected, but no CONNACK came")

    run(scenario(), within=5)


def test_a_login_that_a_real_mosquitto_refuses(tmp_path):
    async def scenario() -> None:
        broker = Mosquitto(tmp_path, "allow_anonymous false")
        await broker.start()
        found = await findings(tmp_path, broker.url)
        await broker.kill()
        fault(found, "login", "0x87 Not authorized: check [uplink] username and password_file, and")
        assert "client id" not in str(found["login"])

    run(scenario())


def test_a_broker_that_takes_no_large_batch_is_warned_of(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=30_000)) as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url)
            assert found["login"].state == "warn"
            assert "packets of at most 30000 bytes: a batch may have 65536" in str(found["login"])
            assert found["batch"].state == "warn", "nobody subscribes"

    run(scenario())


def test_what_is_too_large_for_the_broker_is_not_sent(tmp_path):
    async def scenario() -> None:
        async with Broker(limits=Limits(maximum_packet_size=150)) as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url)
            assert (found["about"].state, found["batch"].state) == ("fail", "fail")
            assert "0x95 packet too large: raise the broker's bound" in str(found["batch"])
            assert not broker.received

    run(scenario())


# The right to publish


@pytest.mark.parametrize("denied", ["about", "batch"])
def test_a_right_that_a_real_mosquitto_denies(tmp_path, denied):
    allowed, topic = ("batch/+", "about") if denied == "about" else ("about", "batch/backlog")
    acl = tmp_path / "acl"
    acl.write_text(f"topic write {ROOT_TOPIC}/{allowed}\ntopic read bygate/v1/#\n")

    async def scenario() -> None:
        async with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}") as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url)
            assert states(found) == {
                **dict.fromkeys(("dns", "tcp", "login", "about", "batch"), "ok"),
                denied: "fail",
            }
            says = f"has this gateway the right to publish to {ROOT_TOPIC}/{topic}?"
            assert says in found[denied].remedy

    run(scenario())


def test_a_broker_that_ends_the_connection_at_about_is_asked_for_the_batch_again(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(end_topics=f"{ROOT_TOPIC}/about")) as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url)
            assert (found["about"].state, found["batch"].state) == ("fail", "warn")
            assert "have we no right to a topic of ours?" in str(found["about"])
            assert broker.connects == 2

    run(scenario())


def test_a_broker_that_acknowledges_nothing(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_withheld=True)) as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url, within=SOON)
            assert "no acknowledgement of the about within 0.3 s" in str(found["about"])
            fault(found, "batch", "no acknowledgement of the batch/backlog within 0.3 s: the link")

    run(scenario())


def test_a_batch_that_reaches_nobody_is_warned_of(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            seal(tmp_path)
            found = await findings(tmp_path, broker.url)
            assert states(found) == {
                **dict.fromkeys(("dns", "tcp", "login", "about"), "ok"),
                "batch": "warn",
            }
            assert f"nobody subscribes to {BACKLOG}: what is" in found["batch"].remedy
            assert "subscribe to bygate/v1/+/batch/+" in found["batch"].remedy

    run(scenario())


def test_without_a_batch_that_right_is_not_proven(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            found = await findings(tmp_path, broker.url)
            assert (found["about"].state, found["batch"].state) == ("ok", "warn")
            assert "none on disk yet to try it with" in found["batch"].seen
            assert [each.topic for each in broker.received] == [f"{ROOT_TOPIC}/about"]

    run(scenario())


# Beside the daemon


def test_what_is_refused_beside_the_daemon_may_hang_on_the_client_id(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(connect_code=0x87)) as broker:
            seal(tmp_path)
            daemons = Disk(tmp_path / "state")
            assert daemons.lock()
            found = await findings(tmp_path, broker.url)
            fault(found, "login", "client id 'trd-0042': sudo systemctl stop bygate, and try again")
            broker.faults = Faults(ack_code=0x87)
            found = await findings(tmp_path, broker.url)
            assert "'trd-0042-doctor', for the daemon runs under 'trd-0042'" in str(found["login"])
            fault(found, "batch", "sudo systemctl stop bygate, and try again")
            assert {each.client_id for each in broker.received} == {"trd-0042-doctor"}
            daemons.close(LOCK)

    run(scenario())


async def doctor(directory: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "doctor", "--json", "-c", directory / "config.toml"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def test_a_daemon_keeps_its_connection(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            sensors = sensor("it", "simulator", interval="100ms")
            async with gateway(tmp_path, broker.url, sensors) as daemon:
                await broker.wait_for(lambda got: any("/batch/" in each.topic for each in got))
                asked = await doctor(tmp_path)
                out, err = await asked.communicate()
                assert (asked.returncode, err) == (0, b"")
                assert json.loads(out)["state"] == "warn", "nobody subscribes"
                assert broker.connections == ["trd-0042"]
                online = json.loads(broker.retained[f"{ROOT_TOPIC}/status"])
                assert online["state"] == "online"
                assert await daemon.stop() == 0
            assert broker.connects == 2
            check_that_the_batch_was_the_daemons(broker)
            offline = json.loads(broker.retained[f"{ROOT_TOPIC}/status"])
            assert (offline["state"], offline["uplink"]["lost"]) == ("offline", 0)

    run(scenario(), 60)


def check_that_the_batch_was_the_daemons(broker: Broker) -> None:
    (again,) = (e for e in broker.received if e.topic == BACKLOG and e.client_id != "trd-0042")
    theirs = [each.payload for each in broker.received if each.client_id == "trd-0042"]
    assert theirs.count(again.payload) == 1
    of_about = {e.payload for e in broker.received if e.topic.endswith("/about")}
    assert len(of_about) == 1


def test_interrupted_it_ends_at_once_and_publishes_no_offline(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_withheld=True)) as broker:
            config(tmp_path, broker.url)
            asked = await doctor(tmp_path)
            await broker.wait_for(1)
            asked.send_signal(signal.SIGINT)
            async with asyncio.timeout(5):
                assert await asked.communicate() == (b"", b"")
            assert asked.returncode == 130
            await until(lambda: not broker.connections)
            assert list(broker.retained) == [f"{ROOT_TOPIC}/about"]

    run(scenario())


def test_killed_it_publishes_no_offline(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(ack_withheld=True)) as broker:
            config(tmp_path, broker.url)
            asked = await doctor(tmp_path)
            await broker.wait_for(1)
            asked.kill()
            await asked.communicate()
            await until(lambda: not broker.connections)
            assert list(broker.retained) == [f"{ROOT_TOPIC}/about"]

    run(scenario())
