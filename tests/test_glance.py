"""A buffer seen by another process while its owner writes: what is there, no more, no less."""

import random
from pathlib import Path
from threading import Event, Thread

from test_buffer import opened, take

from gateway.glance import Glance


class Owner:
    """Fills a buffer and has it delivered, as fast as it goes, in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.buffer = opened(directory)
        self.flushed = self.delivered = 0
        """The highest number that was flushed, and that is about to be delivered."""
        self._ends = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> "Owner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        noise, now = random.Random(1), 0.0
        number = 0
        while not self._ends.is_set():
            for _ in range(20):
                number += 1
                take(self.buffer, f"{number} {noise.randbytes(110).hex()}", at=number)
            now += 11
            self.buffer.tick(now)
            self.flushed = number
            for held in list(self.buffer.waiting())[:-20]:
                payload_end = held.first_ms - 10**12 + held.readings - 1
                self.delivered = payload_end
                self.buffer.acknowledge(held)


def seen(glance: Glance) -> tuple[set[int], int]:
    """Return the numbers that it finds, and how many batches had gone meanwhile."""
    found, gone = set(), 0
    for each in glance.batches():
        if isinstance(each, tuple):
            found |= {int(str(r.value).split()[0]) for r in each[1].readings}
        else:
            gone += 1
    for batch in glance.unsealed():
        found |= {int(str(r.value).split()[0]) for r in batch.readings}
    return found, gone


def test_all_that_was_flushed_and_not_delivered_is_seen_while_the_owner_writes(tmp_path: Path):
    with Owner(tmp_path) as owner:
        looks = rolled = 0
        while rolled < 3 or looks < 100:
            flushed = owner.flushed
            glance = Glance(tmp_path, "trd-0042")
            found, _ = seen(glance)
            assert set(range(owner.delivered + 1, flushed + 1)) <= found
            assert glance.damage == []
            looks += 1
            rolled = max(int(file.stem) for file in tmp_path.glob("*.seg"))


def test_a_segment_that_goes_meanwhile_is_no_damage(tmp_path: Path):
    buffer = opened(tmp_path)
    take(buffer, 1.0)
    buffer.close()
    glance = Glance(tmp_path, "trd-0042")
    for segment in tmp_path.glob("*.seg"):
        segment.unlink()
    assert seen(glance) == (set(), 1)
    assert glance.damage == []
