"""What is acknowledged, as ranges: bounded, and it says below which sequence nothing is known."""

from pathlib import Path

from gateway.acked import ACKED_RANGES, Acked
from gateway.disk import Disk


def acked(*sequences: int) -> Acked:
    noted = Acked(Disk(Path("/none")))
    for sequence in sequences:
        noted.add(sequence, 2)
    return noted


def test_a_batch_that_is_acknowledged_twice_counts_once():
    assert acked(5, 7, 6, 5, 6, 7).ranges == [(5, 7, 6)]


def test_what_is_no_longer_on_disk_is_forgotten_but_the_last():
    noted = acked(1, 3, 5, 6)
    noted.forget_below(5)
    assert (noted.ranges, noted.since) == ([(5, 6, 4)], 5)
    noted.forget_below(9)
    assert (noted.ranges, noted.since) == ([(5, 6, 4)], 9)
    noted.forget_below(2)
    assert noted.since == 9


def test_of_too_many_the_oldest_are_forgotten_and_that_is_known():
    noted = acked(*range(1, 2 * ACKED_RANGES + 6, 2))
    noted.forget_below(1)
    assert (len(noted.ranges), noted.ranges[0]) == (ACKED_RANGES, (7, 7, 2))
    assert (noted.since, 5 in noted, 7 in noted) == (6, False, True)
