import asyncio
import os
import signal
import threading
from pathlib import Path

from gateway_process import values

from gateway.config import load
from gateway.encoding import LinesBound
from gateway.service import Service, stray
from gateway.tally import Tally
from hil.broker import Broker


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
