"""The simulated broker as real clients meet it: mosquitto's own, aiomqtt, and bytes on a socket."""

import asyncio
import shutil
import ssl
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import aiomqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil import mqtt
from hil.broker import FAULTS, Broker, Faults, Limits, matches

CONNECT = mqtt.packet(mqtt.Kind.CONNECT, b"\0\4MQTT\5\2\0\0\0\0\4node")
CONNECT_3 = mqtt.packet(mqtt.Kind.CONNECT, b"\0\4MQTT\4\2\0\0\0\4node")
LEAVE = b"\xe0\0"
PING, PONG = b"\xc0\0", b"\xd0\0"


def live(scenario):
    """Make a test of a coroutine that takes a broker."""

    def test():
        async def run():
            async with asyncio.timeout(10), Broker() as broker:
                await scenario(broker)

        asyncio.run(run())

    return test


def publish(identifier, topic="t", payload=b"x", flags=2):
    """Return the bytes of a publish of MQTT 5, by default with QoS 1."""
    rest = mqtt.text(topic) + identifier.to_bytes(2, "big") + b"\0" + payload
    return mqtt.packet(mqtt.Kind.PUBLISH, rest, flags)


def puback(identifier, code=0x10):
    """Return the bytes of the answer, by default "no matching subscribers"."""
    return b"\x40\3" + identifier.to_bytes(2, "big") + bytes([code])


def parting(code):
    """Return the bytes of the broker's DISCONNECT."""
    return b"\xe0\1" + bytes([code])


async def raw(broker, connect=CONNECT):
    """Connect without a client library; return the two ends of the stream."""
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    writer.write(connect)
    await reader.readexactly((await reader.readexactly(2))[1])
    return reader, writer


async def talk(broker, *packets, connect=CONNECT):
    """Connect, send, and return all that the broker says until it closes."""
    reader, writer = await raw(broker, connect)
    writer.write(b"".join(packets))
    try:
        return await asyncio.wait_for(reader.read(), 3)
    finally:
        writer.close()


async def mosquitto(tool, broker, *arguments, version="5"):
    """Run mosquitto_pub or mosquitto_sub to its end; return what it prints."""
    if shutil.which(f"mosquitto_{tool}") is None:
        pytest.skip("mosquitto-clients is not installed")
    process = await asyncio.create_subprocess_exec(
        *(f"mosquitto_{tool}", "-h", broker.host, "-p", str(broker.port), "-V", version, "-q", "1"),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return (await process.communicate())[0].decode()


async def pub(broker, *arguments, version="5"):
    """Publish "x" on "t" with mosquitto_pub; return its account of the conversation."""
    return await mosquitto("pub", broker, "-d", "-t", "t", "-m", "x", *arguments, version=version)


def client(broker, **kwargs):
    """Return an aiomqtt client of this broker that waits for nothing longer than 0.3 s."""
    kwargs = {"protocol": aiomqtt.ProtocolVersion.V5, "timeout": 0.3} | kwargs
    return aiomqtt.Client(broker.host, broker.port, **kwargs)


# What any broker does


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
def test_a_subscriber_hears_what_others_publish(version):
    @live
    async def scenario(broker):
        async with client(broker, protocol=version) as subscriber:
            await subscriber.subscribe("a/+/c", qos=1)
            await mosquitto("pub", broker, "-t", "a/b/c", "-m", "hello")
            heard = await anext(subscriber.messages)
            assert (heard.topic.value, heard.payload, heard.qos) == ("a/b/c", b"hello", 1)

    scenario()


@pytest.mark.parametrize("version", ["311", "5"])
def test_a_retained_message_waits_for_its_subscriber_until_an_empty_one_deletes_it(version):
    @live
    async def scenario(broker):
        await pub(broker, "-r", version=version)
        assert broker.retained == {"t": b"x"}
        assert await mosquitto("sub", broker, "-t", "#", "-C", "1", version=version) == "x\n"
        await mosquitto("pub", broker, "-t", "t", "-r", "-n", version=version)
        assert broker.retained == {}

    scenario()


@live
async def test_everything_about_a_message_is_on_record(broker):
    await pub(broker, "-i", "node", "-D", "publish", "content-type", "application/cbor")
    (got,) = broker.received
    assert (got.topic, got.payload, got.qos, got.retain) == ("t", b"x", 1, False)
    assert (got.client_id, got.duplicate, got.answer) == ("node", False, 0x10)
    assert got.properties == {"content_type": "application/cbor"}
    assert got.time <= asyncio.get_running_loop().time()


@live
async def test_properties_reach_the_subscriber(broker):
    async with client(broker) as subscriber:
        await subscriber.subscribe("t")
        await pub(broker, "-D", "publish", "user-property", "unit", "Cel")
        assert (await anext(subscriber.messages)).properties.UserProperty == [("unit", "Cel")]


@live
async def test_the_publisher_is_told_when_nobody_subscribes(broker):
    assert "received PUBACK (Mid: 1, RC:16)" in await pub(broker)
    assert "received PUBACK (Mid: 1, RC:0)" in await pub(broker, version="311")


@live
async def test_after_unsubscribing_nothing_is_heard(broker):
    async with client(broker) as subscriber:
        await subscriber.subscribe("t")
        await subscriber.unsubscribe("t")
        assert "RC:16" in await pub(broker)


@live
async def test_a_nameless_client_is_given_a_name(broker):
    async with client(broker, identifier=""):
        assert broker.connections == ["client-1"]


@live
async def test_a_ping_is_answered(broker):
    assert await talk(broker, PING, LEAVE) == PONG


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a/b/c", False),
        ("+/+", "/a", True),
        ("+", "/a", False),
        ("#", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("a", "A", False),
    ],
)
def test_a_filter_matches_as_in_the_examples_of_the_standard(pattern, topic, expected):
    assert matches(pattern, topic) is expected


# Wills


def will(topic="status"):
    """Return a retained will."""
    return aiomqtt.Will(topic, b"offline", qos=1, retain=True)


@live
async def test_a_clean_disconnect_forgets_the_will(broker):
    async with client(broker, will=will()):
        pass
    await broker.wait_for(lambda _: not broker.connections)
    assert broker.retained == {}


@live
async def test_a_disconnect_with_reason_4_publishes_the_will(broker):
    asked = b"\0\4MQTT\5\x26\0\0\0\0\4node\0\0\6status\0\7offline"
    await talk(broker, b"\xe0\1\4", connect=mqtt.packet(mqtt.Kind.CONNECT, asked))
    assert broker.retained == {"status": b"offline"}


@live
async def test_a_lost_connection_publishes_the_will(broker):
    with pytest.raises(aiomqtt.MqttError):
        async with client(broker, will=will()) as lost:
            broker.drop("rst")
            await anext(lost.messages)
    assert broker.retained == {"status": b"offline"}


@live
async def test_a_client_that_takes_over_a_name_ends_the_older_one_and_its_will(broker):
    with pytest.raises(aiomqtt.MqttError):
        async with client(broker, identifier="node", will=will()) as older:
            await talk(broker, LEAVE)
            await anext(older.messages)
    assert broker.retained == {"status": b"offline"}


@live
async def test_the_client_whose_name_is_taken_over_is_told_so(broker):
    older = asyncio.create_task(talk(broker))
    await broker.wait_for(lambda _: broker.connections)
    async with client(broker, identifier="node"):
        assert await older == parting(0x8E)


@live
async def test_silence_of_one_and_a_half_keepalives_ends_a_connection(broker):
    before = asyncio.get_running_loop().time()
    assert await talk(broker, connect=CONNECT.replace(b"\5\2\0\0", b"\5\2\0\1")) == parting(0x8D)
    assert asyncio.get_running_loop().time() - before >= 1.5


# Faults of acknowledgement


@live
async def test_ack_after_makes_the_client_wait(broker):
    broker.faults = Faults(ack_after=0.2)
    async with client(broker, timeout=2) as publisher:
        await publisher.publish("t", qos=1)
    assert asyncio.get_running_loop().time() - broker.received[0].time >= 0.2


@live
async def test_ack_withheld_leaves_the_client_without_an_answer(broker):
    broker.faults = Faults(ack_withheld=True)
    async with client(broker) as publisher:
        with pytest.raises(aiomqtt.MqttError, match="timed out"):
            await publisher.publish("t", qos=1)
    assert [got.answer for got in broker.received] == [None]


@pytest.mark.parametrize("code", [0x87, 0x90, 0x97, 0x99])
def test_ack_code_reaches_the_client_and_the_message_reaches_nobody(code):
    @live
    async def scenario(broker):
        broker.faults = Faults(ack_code=code)
        assert f"received PUBACK (Mid: 1, RC:{code})" in await pub(broker, "-r")
        assert broker.received[0].answer == code
        assert broker.retained == {}

    scenario()


@live
async def test_ack_code_closes_a_connection_of_mqtt_3(broker):
    broker.faults = Faults(ack_code=0x87)
    sent = mqtt.packet(mqtt.Kind.PUBLISH, b"\0\1t\0\1x", 2)
    assert await talk(broker, sent, connect=CONNECT_3) == b""
    assert [got.answer for got in broker.received] == [None]


@live
async def test_ack_topics_confines_the_faults(broker):
    broker.faults = Faults(ack_code=0x87, ack_topics="a/#")
    packets = publish(1, "a/b"), publish(2, "b"), LEAVE
    assert await talk(broker, *packets) == puback(1, 0x87) + puback(2)


@live
async def test_ack_next_confines_the_faults(broker):
    broker.faults = Faults(ack_code=0x97, ack_next=2)
    packets = publish(1), publish(2), publish(3), LEAVE
    assert await talk(broker, *packets) == puback(1, 0x97) + puback(2, 0x97) + puback(3)


@live
async def test_ack_reversed_answers_in_groups_the_last_first(broker):
    broker.faults = Faults(ack_reversed=3)
    reader, writer = await raw(broker)
    writer.write(publish(1) + publish(2) + publish(3) + publish(4))
    assert await reader.readexactly(15) == puback(3) + puback(2) + puback(1)
    await broker.wait_for(4)
    broker.faults = Faults()
    assert await reader.readexactly(5) == puback(4)
    writer.close()


@live
async def test_a_callback_may_change_the_fate_of_the_very_message_it_sees(broker):
    def third_time_lucky(_):
        broker.faults = Faults(ack_code=0x97 if len(broker.received) < 3 else None)

    broker.on_publish.append(third_time_lucky)
    packets = publish(1), publish(2), publish(3), LEAVE
    assert await talk(broker, *packets) == puback(1, 0x97) + puback(2, 0x97) + puback(3)


# Faults of connections


@pytest.mark.parametrize("code", [0x86, 0x88])
def test_connect_code_refuses_the_client(code):
    @live
    async def scenario(broker):
        broker.faults = Faults(connect_code=code)
        with pytest.raises(aiomqtt.MqttError) as caught:
            await client(broker).__aenter__()
        assert caught.value.rc.value == code
        assert broker.connects == 1

    scenario()


@live
async def test_connect_code_has_an_older_number_in_mqtt_3(broker):
    broker.faults = Faults(connect_code=0x86)
    assert "CONNACK (4)" in await pub(broker, version="311")


@live
async def test_connack_withheld_keeps_the_client_waiting(broker):
    broker.faults = Faults(connack_withheld=True)
    with pytest.raises(aiomqtt.MqttError, match="timed out"):
        await client(broker).__aenter__()
    assert (broker.connects, broker.connections) == (1, [])


@live
async def test_drop_by_rst_resets_the_connection(broker):
    reader, writer = await raw(broker)
    broker.drop("rst")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


@live
async def test_drop_by_fin_ends_the_stream(broker):
    reader, writer = await raw(broker)
    broker.drop("fin")
    assert await reader.read() == b""
    writer.close()


@live
async def test_drop_of_one_client_leaves_the_others(broker):
    async with client(broker, identifier="a") as stays:
        _, writer = await raw(broker)
        broker.drop(client_id="node")
        await stays.publish("t", qos=1)
        assert broker.connections == ["a"]
        writer.close()


@live
async def test_drop_after_leaves_the_last_publish_unanswered(broker):
    broker.faults = Faults(drop_after=2, drop_how="fin")
    assert await talk(broker, publish(1), publish(2), publish(3)) == puback(1)
    assert [got.answer for got in broker.received] == [0x10, None]


@live
async def test_drop_how_makes_drop_after_a_reset(broker):
    broker.faults = Faults(drop_after=1, drop_how="rst")
    with pytest.raises(ConnectionResetError):
        await talk(broker, publish(1))


@live
async def test_end_topics_ends_the_connection_at_a_topic_and_keeps_nothing_of_it(broker):
    broker.faults = Faults(end_topics="a/#", end_code=0x87)
    retained = publish(2, "a/b", flags=3)
    assert await talk(broker, publish(1), retained, publish(3)) == puback(1) + parting(0x87)
    assert [got.answer for got in broker.received] == [0x10, None]
    assert not broker.retained


@live
async def test_end_code_0_ends_it_without_a_word(broker):
    broker.faults = Faults(end_topics="#")
    assert await talk(broker, publish(1)) == b""


@live
async def test_down_refuses_and_up_listens_on_the_same_port(broker):
    parted = asyncio.create_task(talk(broker))
    await broker.wait_for(lambda _: broker.connections)
    await broker.down()
    assert await parted == parting(0x8B)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(broker.host, broker.port)
    await broker.up()
    assert "RC:16" in await pub(broker)


@live
async def test_deaf_answers_nothing_until_it_is_over_and_drops_nobody(broker):
    async with client(broker) as publisher:
        broker.faults = Faults(deaf=True)
        with pytest.raises(aiomqtt.MqttError, match="timed out"):
            await publisher.publish("t", b"held", qos=1)
        assert broker.received == []
        broker.faults = Faults()
        await broker.wait_for(lambda got: got and got[0].answer == 0x10)
        await publisher.publish("t", qos=1)
    assert broker.connects == 1


@live
async def test_deaf_lets_no_late_answer_out(broker):
    broker.faults = Faults(ack_after=0.1)
    reader, writer = await raw(broker)
    writer.write(publish(1))
    await broker.wait_for(1)
    broker.faults = Faults(deaf=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    writer.close()


# Limits


@live
async def test_the_client_is_told_the_limits(broker):
    broker.limits = Limits(receive_maximum=3, maximum_packet_size=900, retain_available=False)
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    writer.write(CONNECT)
    _, _, rest = await mqtt.read_packet(reader, 100)
    told = mqtt.Cursor(rest[2:]).properties(5)
    assert told.items() >= {"receive_maximum": 3, "maximum_packet_size": 900}.items()
    assert told.items() >= {"maximum_qos": 1, "retain_available": 0}.items()
    writer.close()


@pytest.mark.parametrize(
    ("limits", "packets", "code"),
    [
        (Limits(maximum_packet_size=100), [publish(1, payload=b"x" * 100_000)], 0x95),
        (Limits(retain_available=False), [publish(1, flags=3)], 0x9A),
        (Limits(maximum_qos=0), [publish(1)], 0x9B),
        (Limits(), [publish(1, flags=4)], 0x9B),
    ],
)
def test_a_limit_exceeded_ends_the_connection_with_its_reason(limits, packets, code):
    @live
    async def scenario(broker):
        broker.limits = limits
        assert await talk(broker, *packets) == parting(code)
        assert broker.received == []

    scenario()


@live
async def test_receive_maximum_counts_what_is_not_acknowledged(broker):
    broker.limits, broker.faults = Limits(receive_maximum=2), Faults(ack_withheld=True)
    assert await talk(broker, publish(1), publish(2), publish(3)) == parting(0x93)
    broker.faults = Faults()
    answers = puback(1) + puback(2) + puback(3)
    assert await talk(broker, publish(1), publish(2), publish(3), LEAVE) == answers


# Whatever a client sends


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"\x00\0", 0x82),
        (b"\xc1\0", 0x81),
        (b"\x36\0", 0x81),
        (b"\x30\xff\xff\xff\xff\x01", 0x81),
        (b"\x30\3\0\1\xff", 0x81),
        (b"\x30\4\0\1#\0", 0x81),
        (b"\x30\5\0\1t\1\x7f", 0x81),
        (b"\x30\7\0\1t\3\x23\0\1", 0x94),
        (b"\x82\5\0\1\2\x0b\1", 0x82),
        (CONNECT, 0x82),
    ],
)
def test_a_packet_that_breaks_the_protocol_ends_the_connection(packet, code):
    @live
    async def scenario(broker):
        assert await talk(broker, packet) == parting(code)

    scenario()


@live
async def test_an_impossible_subscription_is_refused_alone(broker):
    wanted = b"".join(mqtt.text(f) + b"\1" for f in ("a", "a/#/b", "$share/g/a", "a+", ""))
    subscribe = mqtt.packet(mqtt.Kind.SUBSCRIBE, b"\0\7\0" + wanted, 2)
    suback = b"\x90\x08\0\7\0" + bytes([1, 0x8F, 0x9E, 0x8F, 0x8F])
    assert await talk(broker, subscribe, LEAVE) == suback


@live
async def test_a_subscriber_that_does_not_read_is_cut_off(broker):
    reader, writer = await raw(broker)
    writer.write(mqtt.packet(mqtt.Kind.SUBSCRIBE, b"\0\1\0\0\1#\0", 2))
    await reader.readexactly(6)
    async with client(broker, timeout=5) as publisher:
        while "node" in broker.connections:
            await publisher.publish("t", bytes(900_000), qos=1)
    writer.close()


@live
async def test_another_version_of_the_protocol_is_refused(broker):
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    writer.write(CONNECT.replace(b"MQTT\5", b"MQTT\6"))
    assert await reader.read() == b"\x20\2\0\1"
    writer.close()


@settings(max_examples=100)
@given(sent=st.binary(max_size=40), kind=st.integers(0, 255), greets=st.booleans())
def test_any_bytes_at_all_leave_the_broker_standing(sent, kind, greets):
    @live
    async def scenario(broker):
        _, writer = await asyncio.open_connection(broker.host, broker.port)
        writer.write(CONNECT * greets + bytes([kind, len(sent)]) + sent)
        writer.write_eof()
        assert await talk(broker, PING, LEAVE) == PONG
        writer.close()

    scenario()


# Its life


@live
async def test_dropping_at_any_moment_of_a_connections_end_is_harmless(broker):
    broker.on_publish.append(lambda _: broker.drop("rst"))
    for _ in range(20):
        with pytest.raises(ConnectionResetError):
            await talk(broker, publish(1))
        broker.drop("rst")
        broker.drop("fin")
    await broker.wait_for(lambda _: not broker.connections)


@live
async def test_wait_for_says_what_there_was_instead(broker):
    await pub(broker)
    with pytest.raises(TimeoutError, match=r"1 received in 0\.01 s.*topic='t'"):
        await broker.wait_for(2, timeout=0.01)


def test_leaving_closes_every_connection_promptly_even_of_clients_that_never_listen():
    async def scenario():
        async with Broker(faults=Faults(deaf=True)) as broker:
            streams = [await asyncio.open_connection(broker.host, broker.port) for _ in range(5)]
            streams[0][1].write(CONNECT)
            before = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - before < 1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for _, writer in streams:
            writer.close()

    asyncio.run(scenario())


def test_an_error_in_the_body_comes_out_as_it_is():
    async def scenario():
        async with Broker() as broker, client(broker):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the paths of a certificate for 127.0.0.1 and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 1"
    names = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", paths[0], "-keyout", paths[1]]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return paths


def test_tls_serves_a_client_that_trusts_it(certificate):
    async def scenario():
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
        async with Broker(tls=tls) as broker:
            assert broker.url == f"mqtts://127.0.0.1:{broker.port}"
            assert "RC:16" in await pub(broker, "--cafile", str(certificate[0]))
            trust = ssl.create_default_context(cafile=certificate[0])
            async with client(broker, tls_context=trust) as stays:
                broker.drop("fin")
                with pytest.raises(aiomqtt.MqttError):
                    await anext(stays.messages)

    asyncio.run(scenario())


def test_served_alone_it_prints_each_message():
    async def scenario():
        code = "import asyncio, hil.broker; asyncio.run(hil.broker.serve(port=0))"
        served = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), cwd=Path(__file__).parents[1], stdout=subprocess.PIPE
        )
        port = (await served.stdout.readline()).decode().rpartition(":")[2]
        async with aiomqtt.Client("127.0.0.1", int(port)) as publisher:
            await publisher.publish("a/b", b"four", qos=1)
        assert await served.stdout.readline() == b"a/b  4 B\n"
        served.terminate()
        await served.wait()

    asyncio.run(scenario())


def test_every_fault_and_limit_has_its_sentence():
    names = {f.name for f in (*fields(Faults), *fields(Limits))}
    assert names | {"drop", "down"} == set(FAULTS)
    assert all(sentence.endswith(".") for sentence in FAULTS.values())
