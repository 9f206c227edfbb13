"""How often it is told that a sensor fails."""

from gateway.ration import AGAIN, BURST, Outages


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


def told(outages, time, count, gap):
    """Return what was told of so many outages, each of `gap` seconds, with as long between them."""
    lines = []
    for _ in range(count):
        lines.append(outages.begin())
        assert outages.begin() is None, "told twice"
        time.now += gap
        assert outages.end() is (lines[-1] is not None)
        time.now += gap
    return lines


def test_each_outage_is_told_while_they_are_rare():
    time = Time()
    assert told(Outages(time), time, 100, AGAIN) == [""] * 100


def test_a_sensor_that_comes_and_goes_is_told_and_said_to_do_so_then_once_a_minute():
    time = Time()
    outages = Outages(time)
    lines = [line for line in told(outages, time, 1800, 1.0) if line is not None]
    assert lines[: BURST - 1] == [""] * (BURST - 1)
    assert all("comes and goes" in line for line in lines[BURST:])
    assert BURST + 58 <= len(lines) <= BURST + 60


def test_an_outage_that_lasts_is_told_in_the_end():
    time = Time()
    outages = Outages(time)
    told(outages, time, BURST, 0)
    for _ in range(int(AGAIN) - 1):
        assert outages.begin() is None
        time.now += 1
    time.now += 1
    assert outages.begin() is not None


def test_after_a_quiet_hour_each_is_told_again():
    time = Time()
    outages = Outages(time)
    told(outages, time, BURST, 0)
    time.now += 3600
    assert told(outages, time, 3, 1) == [""] * 3


def test_another_cause_is_told_in_the_midst_of_an_outage_within_the_same_bounds():
    outages = Outages(Time())
    lines = [outages.begin(another=True) for _ in range(2 * BURST)]
    assert [line is not None for line in lines] == [True] * BURST + [False] * BURST


def test_a_quiet_day_saves_nothing_up():
    time = Time()
    outages = Outages(time)
    time.now += 86_400
    lines = told(outages, time, 2 * BURST, 0)
    assert [line is not None for line in lines] == [True] * BURST + [False] * BURST
