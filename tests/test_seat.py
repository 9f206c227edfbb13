import asyncio
import socket

import pytest

from hil.broker import Broker
from hil.mosquitto import Mosquitto
from hil.seat import Seat
from hil.valve import Valve


def is_given_away(port: int) -> bool:
    """Whether it is one that Linux would give to a client, or to who asks for any."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_seat_refuses_connects_is_listened_on_by_its_owner_and_given_to_nobody_else():
    with Seat() as seat:
        assert not is_given_away(seat.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", seat.port))
        with socket.create_server(("127.0.0.1", seat.port)):
            socket.create_connection(("127.0.0.1", seat.port)).close()
    assert is_given_away(seat.port)


def test_a_seat_that_is_taken_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="in use"):
        Seat(server.getsockname()[1])


def test_brokers_and_valves_keep_their_port_while_they_are_down(tmp_path):
    async def scenario() -> None:
        async with Broker() as broker, Valve(broker.port) as valve, Mosquitto(tmp_path) as real:
            await broker.down()
            await valve.shut()
            await real.end(15)
            assert not any(map(is_given_away, (broker.port, valve.port, real.port)))
            await broker.up()

    asyncio.run(scenario())
