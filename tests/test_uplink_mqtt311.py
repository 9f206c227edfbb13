"""Delivery to brokers that know nothing newer than MQTT 3.1.1, and so no reason codes."""

from dataclasses import replace

import pytest
from delivery import Box, address, both, delivering, lane, run, until
from mosquitto import Mosquitto

from gateway.settings import Broker as Address
from gateway.suspects import LOSSES
from gateway.wire import decode
from hil.broker import Broker, Faults, Received

OLD = {"protocol": "3.1.1"}


def test_batches_go_without_properties_and_many_at_once(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            broker.faults = Faults(ack_after=0.1)
            under_way: list[int] = []
            broker.on_publish.append(
                lambda _: under_way.append(sum(m.answer is None for m in broker.received))
            )
            box = Box(tmp_path, address(broker), settings=OLD)
            await box.seal(300)
            async with delivering(box):
                await box.empty()
                await box.seal(3)
                await box.empty()
            assert lane(broker.received, "backlog") == list(range(1, 301))
            assert lane(broker.received, "live") == [301, 302, 303]
            assert max(under_way) == 20
            assert broker.connects == 1
            assert not any(message.properties for message in broker.received)

    run(scenario())


def test_a_refused_batch_is_guessed_from_lost_connections_and_holds_up_no_other(tmp_path, caplog):
    async def scenario() -> None:
        async with Broker() as broker:

            def refuses_the_fifth(message: Received) -> None:
                code = 0x99 if both([message]) == [5] else None
                broker.faults = replace(broker.faults, ack_code=code)

            broker.on_publish.append(refuses_the_fifth)
            box = Box(tmp_path, address(broker), settings=OLD)
            await box.seal(30)
            async with delivering(box):
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                assert list(box.state.suspects) == [5]
                await box.seal(3)
                await until(lambda: box.buffer.stats().waiting_batches == 1)
                assert LOSSES <= both(broker.received).count(5) <= LOSSES + 2
        assert "batch 5: it does not go, again and again, and others do" in caplog.text

    run(scenario())


def test_the_will_says_offline(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker:
            box = Box(tmp_path, address(broker), settings=OLD)
            status = "bygate/v1/trd-0042/status"
            async with delivering(box):
                await until(lambda: b"online" in broker.retained.get(status, b""))
                broker.faults = Faults(connect_code=0x88)
                broker.drop()
                await until(lambda: b"offline" in broker.retained[status])

    run(scenario())


def test_a_login_that_is_refused_says_what_to_check(tmp_path):
    async def scenario() -> None:
        async with Broker(faults=Faults(connect_code=0x87)) as broker:
            box = Box(tmp_path, address(broker), settings=OLD)
            async with delivering(box):
                await until(lambda: "check [uplink] username" in (box.state.why or ""))

    run(scenario())


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_real_mosquitto_gets_every_batch_once_and_in_order(protocol, tmp_path):
    async def scenario() -> None:
        async with Mosquitto(tmp_path) as broker:
            address = Address("127.0.0.1", broker.port, tls=False)
            box = Box(tmp_path / "state", address, settings={"protocol": protocol})
            await box.seal(50)
            async with delivering(box):
                found: list[int] = []
                while len(found) < 50:
                    _, topic, payload = await broker.message()
                    found += [decode(payload).sequence] if "/batch/" in topic else []
                await box.empty()
            assert found == list(range(1, 51))
            version = {"5": "p5", "3.1.1": "p2"}[protocol]
            assert f"as trd-0042 ({version}, " in broker.log

    run(scenario())


def test_a_real_mosquitto_acknowledges_what_its_acl_denies(tmp_path):
    """So says gateway/WIRE.md: why 3.1.1 is for brokers that know nothing newer."""

    async def scenario() -> None:
        acl = tmp_path / "acl"
        acl.write_text("topic read #\ntopic write bygate/v1/+/status\n")
        async with Mosquitto(tmp_path, f"allow_anonymous true\nacl_file {acl}") as broker:
            address = Address("127.0.0.1", broker.port, tls=False)
            old = Box(tmp_path / "old", address, settings=OLD)
            await old.seal()
            async with delivering(old):
                await old.empty()
            new = Box(tmp_path / "new", address)
            await new.seal()
            async with delivering(new):
                await until(lambda: "0x87 not authorized" in (new.state.why or ""))
                assert not new.delivered

    run(scenario())
