"""What is said when nobody is let in: the cause in the broker's words, and what mends it."""

import pytest
from delivery import Box, delivering, run, until
from paho.mqtt.reasoncodes import ReasonCode
from saying import CONNACK, saying

from gateway.reasons import _CODES, of_code, of_text
from gateway.settings import Broker, UplinkSettings


def why(path, answer, *, close=False, **settings):
    """Return what a gateway says of a port that answers so."""

    async def scenario():
        async with saying(bytes.fromhex(answer), close=close) as broker:
            box = Box(path, broker, settings=settings)
            async with delivering(box):
                await until(lambda: box.state.why)
            said.append(box.state.why)

    said: list[str] = []
    run(scenario())
    return said[0]


def test_every_reason_of_a_refusal_has_a_remedy_unless_it_is_not_for_such_as_we_are():
    not_for_us = {0x8E, 0x8F, 0x91, 0x92, 0x94, 0x9E, 0xA1, 0xA2}  # 0x8e is told elsewhere
    assert {code for code in ReasonCode.names if code >= 0x80} - not_for_us == set(_CODES)


def test_what_a_broker_adds_is_shown_within_bounds():
    class Properties:
        ReasonString = "no\n" + "x" * 70_000
        ServerReference = "other:1883"

    said = of_code(0x9D, "Server moved", Properties())
    assert said.startswith("0x9d Server moved, it says 'no\\nxxx")
    assert said.endswith("…', there is 'other:1883': set [uplink] url to where it is now")
    assert len(said) < 200


@pytest.mark.parametrize(
    ("answer", "settings", "says"),
    [
        ("2003008b 00", {}, "0x8b Server shutting down: tried again until it is back"),
        ("20030088 00", {}, "0x88 Server unavailable: it runs and serves nobody"),
        (
            "200c0087 09 1f00066e6f20776179",
            {},
            "0x87 Not authorized, it says 'no way': check [uplink] username and password_file, and",
        ),
        (
            "2003000000 e00a9d 08 1c00056f746865 72".replace(" ", ""),
            {},
            "connection lost: 0x9d Server moved, there is 'other': set [uplink] url to where it is",
        ),
        ("2003000000 e0029600", {}, "connection lost: 0x96 Message rate too high: set [uplink] b"),
        ("2003000000 e0028000", {}, "connection lost: 0x80 Unspecified error: the broker's log"),
        ("e0028b00", {}, "0x8b Server shutting down: tried again until it is back"),
        ("20050000022500", {}, "0x9a Retain not supported: the broker must take retained"),
        ("20050000022400", {}, "0x9b QoS not supported: the broker must take QoS 1"),
        (
            "20020001",
            {"protocol": "3.1.1"},
            'unacceptable protocol version: it takes no MQTT 3.1.1: set [uplink] protocol = "5"',
        ),
        (
            "2006000003210000",
            {},
            "it answered, but not as MQTT 5 does: a CONNACK came that is malformed (00 00 03 21 00 "
            "00): ReceiveMaximum property value must be in the range 1-65535: a fault of the ",
        ),
        (
            "2008000005270000 0000",
            {},
            "as MQTT 5 does: a CONNACK came that is malformed (00 00 05 27 ",
        ),
        (
            "20090000 06 210005 210005",
            {},
            "a CONNACK came that is malformed (00 00 06 21 00 05 21 00 05): a property came twice: "
            "a fault of the broker, or of a proxy on the way; or set",
        ),
        ("20020003", {"protocol": "3.1.1"}, "0x88 Server unavailable"),
        (
            "2003000000 30fc809001",
            {},
            "connection lost: a packet of 2359420 bytes came, and a",
        ),
        (
            "2003000000 c000",
            {},
            "connection lost: PINGREQ came, which clients send: a fault of the broker, or",
        ),
        ("2003000000 50020001", {}, "lost: PUBREC came, which answers nothing of ours: a fault of"),
        (
            "2003000000 9003000100",
            {},
            "connection lost: SUBACK came, which answers nothing of ours",
        ),
        ("2003000000 f000", {}, "connection lost: AUTH came, which answers nothing of ours: a fau"),
        ("f000", {}, "answered, but not as MQTT 5 does: AUTH came, which answers nothing of ours"),
        ("30fc809001", {}, "answered, but not as MQTT 5 does: a packet of 2359420 bytes came"),
        (
            "2003000000 4004000177 00",
            {},
            "connection lost: a PUBACK came that is malformed (00 01 77 00): 119: a fault "
            'of the broker, or of a proxy on the way; or set [uplink] protocol = "3.1.1"',
        ),
        ("20020000 5000", {"protocol": "3.1.1"}, 'on the way; or set [uplink] protocol = "5"'),
    ],
)
def test_a_refusal_is_told_with_what_mends_it(answer, settings, says, tmp_path):
    assert says in why(tmp_path, answer, **settings)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("15030100020246", "TLS is spoken there: write mqtts:// in [uplink] url"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".hex(),
            "a web server answers there ('HTTP/1.1 400 ",
        ),
        (
            b"<html>".hex(),
            "a web server answers there ('<html>'), or MQTT over WebSockets: ch",
        ),
        (
            b"-ERR no\r\n".hex(),
            "what answers there is no broker ('-ERR no'): check host and port",
        ),
        (
            "20020000",
            'what answers MQTT 5 there speaks MQTT 3.1.1: set [uplink] protocol = "3.1.1"',
        ),
        (
            "20020005",
            'what answers MQTT 5 there speaks MQTT 3.1.1: set [uplink] protocol = "3.1.1"',
        ),
        (
            "000000000000",
            "it answered, but not as MQTT 5 does: a packet came that is none of MQTT's",
        ),
    ],
)
def test_what_listens_in_place_of_a_broker_is_told_by_how_it_answers(answer, says, tmp_path):
    assert why(tmp_path, answer, close=True).startswith(says)


def test_what_greets_and_then_waits_is_no_silence(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", 0.3)
    assert "is no broker ('SSH-2.0-it')" in why(tmp_path, b"SSH-2.0-it\r\n".hex())


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        (
            "5",
            'connected, but no CONNACK came: set [uplink] protocol = "3.1.1", if it knows no MQTT',
        ),
        (
            "3.1.1",
            "connected, but no CONNACK came: has the broker too much to do (RabbitMQ: a memo",
        ),
    ],
)
def test_a_connect_that_is_not_answered_is_no_fault_of_the_network(
    protocol, says, tmp_path, monkeypatch
):
    monkeypatch.setattr("gateway.connection.CONNECT_WITHIN", 0.3)
    assert says in why(tmp_path, "", protocol=protocol)


def test_an_end_without_a_word_soon_after_the_beginning_may_be_another_clients_doing(tmp_path):
    said = why(tmp_path, CONNACK.hex(), close=True)
    assert "no reason: does another client use our id 'trd-0042'? Then set [uplink] client" in said


ALERT = "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:1006)"


@pytest.mark.parametrize(
    ("said", "settings", "remedy"),
    [
        (ALERT, {}, "it broke off TLS: does it want cert_file, of an authority that it trusts?"),
        (ALERT, {"cert_file": "/c"}, "does it want another cert_file"),
        (
            "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred",
            {},
            "Or no TLS is spoken there",
        ),
        ("[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1", {}, "the broker must speak TLS 1.2 or 1.3"),
        ("[SSL: UNSUPPORTED_PROTOCOL] uns", {}, "the broker must speak TLS 1.2 or 1.3"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong", {}, "mqtt:// for plain TCP, or another port"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong", {"password_file": "/p"}, "today: is it the right po"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong", {"cert_file": "/c"}, "today: is it the right port"),
        ("_ssl.c:989: The handshake operation timed out", {}, "no TLS is spoken there: is it"),
    ],
)
def test_a_failure_of_tls_is_told_with_what_mends_it(said, settings, remedy):
    url = (Broker("host", 8883, tls=True),)
    assert remedy in of_text(said, UplinkSettings(url=url, **settings), tls=True)


def test_a_plain_connection_that_is_reset_is_explained_as_one_that_is_closed():
    settings = UplinkSettings(url=())
    for said in ("[Errno 104] Connection reset by peer", "closed before the broker had answered"):
        remedy = f"{said}: does it speak MQTT 5 there (else set [uplink] protocol), or TLS (mqtts:"
        assert of_text(said, settings, tls=False).startswith(remedy)
    assert "it broke off TLS" in of_text("Connection reset", settings, tls=True)
