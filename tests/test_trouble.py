"""What is said of an adapter that fails, and what the status calls it."""

import logging

import pytest

from gateway.trouble import LAST, SETTLED, Trouble


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "gateway.trouble")
    return lambda: [record.getMessage() for record in caplog.records]


def lasts(trouble, time, why, seconds):
    for _ in range(int(seconds) + 1):
        trouble.begins(why)
        time.now += 1


def test_an_outage_is_told_when_it_begins_and_when_it_ends(said):
    time = Time()
    trouble = Trouble("hci0", time)
    lasts(trouble, time, "off", 60)
    trouble.passes()
    assert said() == ["off", "hci0: scans again"]
    assert (trouble.state, trouble.why) == ("ok", "")


def test_another_cause_of_it_is_told_once_it_has_lasted(said):
    time = Time()
    trouble = Trouble("hci0", time)
    lasts(trouble, time, "gone", 60)
    lasts(trouble, time, "begins", SETTLED - 1)
    assert said() == ["gone"]
    assert trouble.why == "begins"
    lasts(trouble, time, "no adapter", SETTLED)
    assert said() == ["gone", "no adapter"]


def test_what_was_never_wrong_has_no_end(said):
    trouble = Trouble("hci0", Time())
    assert (trouble.state, trouble.why) == ("silent", "hci0 does not scan yet")
    trouble.passes()
    assert said() == []


def test_one_that_is_deaf_is_so_until_it_hears_though_something_else_came_and_went(said):
    time = Time()
    trouble = Trouble("hci0", time)
    trouble.climbs("deaf: scans anew")
    trouble.begins("gone")
    assert trouble.why == "gone"
    trouble.passes()
    assert (trouble.state, trouble.why) == ("silent", "deaf: scans anew")
    trouble.hears()
    trouble.passes()
    assert (trouble.state, trouble.why) == ("ok", "")
    assert said() == ["deaf: scans anew", "hci0: scans again"]


def test_only_of_one_that_nothing_helped_the_state_is_that_it_needs_a_power_cut():
    trouble = Trouble("hci0", Time())
    states = []
    for rung in range(LAST):
        trouble.climbs(f"deaf, {rung}")
        states.append(trouble.state)
    assert states == ["silent"] * (LAST - 1) + ["power cut needed"]
    trouble.begins("there is no adapter")  # somebody pulls it
    assert trouble.state == "silent"
