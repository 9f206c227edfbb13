"""What is empty is an outcome with a name, and what follows it is read."""

import pytest

from gateway.driver import Driver, SensorError, SerialDriver, find, names, outcomes
from gateway.frame import Frame, Framer

SERIAL = [name for name in names() if issubclass(find(name), SerialDriver)]
GOOD = {
    "nmea0183": b"$IIMWV,271.0,R,000.2,N,A*3B\r\n",
    "maxbotix": b"R1234\r",
}
EMPTY = {"nmea0183": b"$\r\n", "maxbotix": b"R\r"}


def made(name: str) -> SerialDriver:
    driver: Driver = find(name)()
    assert isinstance(driver, SerialDriver)
    return driver


@pytest.mark.parametrize("name", SERIAL)
def test_no_bytes_at_all_are_a_sensors_error(name: str):
    with pytest.raises(SensorError):
        made(name).decode(b"")


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_frame_is_bad_and_the_next_is_read(name: str):
    found = [outcome.name for outcome in outcomes(made(name), EMPTY[name] + GOOD[name])]
    assert found == ["bad frame", "ok"]


def test_an_empty_line_is_a_frame():
    framer = Framer(Frame(end=b"\n"))
    framer.feed(b"\nT=1\n")
    assert [framer.next(), framer.next(), framer.next()] == [b"\n", b"T=1\n", None]
