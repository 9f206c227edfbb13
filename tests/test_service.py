import asyncio
import contextlib
import errno
import json
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certificates import DAY, NOW, Authority
from delivery import until
from gateway_process import values
from outside_drivers import install
from test_buffer import opened, take

from gateway.clock import Clock
from gateway.config import load
from gateway.encoding import LinesBound
from gateway.glance import Glance
from gateway.service import Service, stray
from gateway.tally import Tally
from hil.broker import Broker, Received

NOWHERE = "mqtt://127.0.0.1:1"


@contextlib.asynccontextmanager
async def serving(
    directory: Path, url: str, more: str = "", clock: Clock | None = None
) -> AsyncIterator[Service]:
    """Run a gateway in this process, with `more` in its configuration."""
    file = directory / "config.toml"
    file.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{directory}/state"\n'
        f'[uplink]\nurl = "{url}"\n{more}'
    )
    service = Service(load(file), clock)
    running = asyncio.create_task(service.run())
    await until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    try:
        yield service
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await running


SENSOR = '[sensors.box]\ndriver = "host"\ninterval = "100ms"\n'


def test_a_durable_sensor_is_on_disk_at_once(tmp_path: Path):
    rare = '[buffer]\nflush_interval = "1h"\nseal_interval = "1h"\n'

    async def scenario() -> None:
        async with serving(tmp_path, NOWHERE, f"{rare}{SENSOR}durable = true\n"):
            await until((tmp_path / "state/journal").exists)
            await until(lambda: flushed(tmp_path / "state") >= 10)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def flushed(directory: Path) -> int:
    return sum(len(batch.readings) for batch in Glance(directory, "trd-0042").unsealed())


def test_a_sync_that_fails_once_when_it_stops_costs_nothing(tmp_path: Path, monkeypatch):
    rare = '[buffer]\nflush_interval = "1h"\nseal_interval = "1h"\n'
    failures = [OSError(errno.EIO, "Input/output error")]

    def fdatasync(fd: int, sync=os.fdatasync) -> None:
        if failures:
            raise failures.pop()
        sync(fd)

    async def scenario() -> None:
        async with serving(tmp_path, NOWHERE, f"{rare}{SENSOR}") as service:
            await until(lambda: service._buffer.unsaved >= 10)
            monkeypatch.setattr(os, "fdatasync", fdatasync)
        told = service._buffer.stats()
        assert (told.disk_errors, told.dropped_by, told.waiting_readings) == (1, {}, told.taken)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_what_a_stop_loses_is_told_with_its_cause_though_the_disk_works_again_just_then(
    tmp_path: Path, monkeypatch, caplog
):
    rare = '[buffer]\nflush_interval = "1h"\nseal_interval = "1h"\n'

    async def scenario() -> None:
        async with serving(tmp_path, NOWHERE, f"{rare}{SENSOR}") as service:

            def fdatasync(fd: int, sync=os.fdatasync) -> None:
                if not service._buffer.stats().dropped:
                    raise OSError(errno.EIO, "Input/output error")
                sync(fd)

            await until(lambda: service._buffer.unsaved >= 10)
            monkeypatch.setattr(os, "fdatasync", fdatasync)
        assert service._buffer.fault is None

    asyncio.run(asyncio.wait_for(scenario(), 30))
    (told,) = [each.message for each in caplog.records if each.message.startswith("stopped: ")]
    assert "readings lost: " in told
    assert "Input/output error" in told


def test_what_is_older_than_max_age_goes_while_it_runs(tmp_path: Path):
    for epoch in (1, 2):
        buffer = opened(tmp_path / "state", epoch)
        take(buffer, 1.0, 2.0)  # in 2001
        buffer.close()
    clock = Clock(kernel=lambda: (4000, False))

    async def scenario() -> None:
        async with serving(tmp_path, NOWHERE, '[buffer]\nmax_age = "1d"\n', clock):
            await until(lambda: Glance(tmp_path / "state", "trd-0042").spool.dropped == 4)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_what_our_certificate_lets_expect_is_looked_at_while_a_connection_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.uplink.LOOK_EVERY", 0.05)
    city = Authority()
    city.write(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(city.issue(tmp_path / "server.pem", "broker"))
    cert = city.issue(tmp_path / "cert.pem", "one", until=NOW + 90 * DAY)
    files = f'ca_file = "{tmp_path}/ca.pem"\ncert_file = "{cert}"\n'

    async def scenario() -> None:
        async with Broker(tls=context) as broker, serving(tmp_path, broker.url, files):
            await broker.wait_for(lambda seen: status(seen) and not expiring(seen))
            city.issue(cert, "one", until=NOW + 9 * DAY)
            await broker.wait_for(expiring)
            assert broker.connects == 1

    asyncio.run(asyncio.wait_for(scenario(), 30))


def status(seen: list[Received]) -> list[Any]:
    return [json.loads(each.payload) for each in seen if each.topic.endswith("/status")]


def expiring(seen: list[Received]) -> object:
    return status(seen)[-1]["uplink"]["certificate"]["why"]


def test_a_drivers_name_is_that_in_the_configuration(tmp_path: Path, monkeypatch):
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")

    async def scenario() -> None:
        sensor = '[sensors.roof]\ndriver = "attic"\n'
        async with Broker() as broker, serving(tmp_path, broker.url, sensor):
            await broker.wait_for(lambda seen: len(described(seen)) == 2)
            about, status = described(broker.received).values()
            assert about["sensors"]["roof"]["driver"] == "attic"
            assert status["sensors"]["roof"]["driver"] == "attic"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def described(seen: list[Received]) -> dict[str, Any]:
    """Return what a gateway says of itself, by topic."""
    said = {each.topic: each.payload for each in seen if each.topic.endswith(("/about", "/status"))}
    return {topic: json.loads(said[topic]) for topic in sorted(said)}


def test_outcomes_are_told_while_it_runs(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            file = tmp_path / "config.toml"
            file.write_text(
                f'[gateway]\nid = "trd-0042"\nstate_dir = "{tmp_path}/state"\n'
                f'[uplink]\nurl = "{broker.url}"\n[buffer]\nseal_interval = "100ms"\n'
                '[sensors.box]\ndriver = "host"\n'
            )
            service = Service(load(file))
            service._tally = Tally(service._pollers, service._clock, every=0.1)
            serving = asyncio.create_task(service.run())
            await broker.wait_for(lambda seen: values(seen, "box", "outcome_ok")[:2] == [1, 0])
            os.kill(os.getpid(), signal.SIGTERM)
            await serving

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_batches_are_filled_by_what_is_sent_of_them(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text(
        f'[gateway]\nid = "trd-0042"\nstate_dir = "{tmp_path}/state"\n'
        '[uplink]\nurl = "mqtt://127.0.0.1"\nencoding = "json"\n'
    )

    async def scenario() -> None:
        assert Service(load(file))._buffer._intake._bound is LinesBound

    asyncio.run(scenario())


def test_connecting_has_threads_of_its_own_and_they_are_few(tmp_path: Path):
    async def scenario() -> None:
        async with Broker() as broker:
            file = tmp_path / "config.toml"
            file.write_text(
                f'[gateway]\nid = "trd-0042"\nstate_dir = "{tmp_path}/state"\n'
                f'[uplink]\nurl = "{broker.url}"\n'
            )
            serving = asyncio.create_task(Service(load(file)).run())
            await broker.wait_for(lambda seen: seen)
            names = {thread.name.rpartition("_")[0] for thread in threading.enumerate()}
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
        assert "connect" in names
        assert "asyncio" not in names

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_an_error_that_nobody_met_is_logged_without_the_stranger_it_is_about(caplog):
    def lost(device: str) -> None:
        raise KeyError(device)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(stray)
        loop.call_soon(lost, "4E:AD:BE:EF:00:01")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert "KeyError" in caplog.text
    assert "in lost" in caplog.text
    assert "4E:AD" not in caplog.text
