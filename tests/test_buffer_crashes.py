"""The protocol of journal and spool, driven at random and cut off at random."""

import os
from random import Random

from crash_disk import CrashDisk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gateway.buffer import Buffer
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading
from gateway.settings import BufferSettings
from gateway.wire import decode

FLUSH, SEAL = 10.0, 60.0
LENGTH = 5000 if os.environ.get("BYGATE_TESTS") == "long" else 120


class PowerCuts(RuleBasedStateMachine):
    """A gateway on a disk whose power fails, and a receiver that de-duplicates."""

    @initialize(seed=st.integers(0, 1 << 32))
    def install(self, seed: int) -> None:
        self.random = Random(seed)
        self.disk = CrashDisk()
        self.now = 0.0
        self.offset, self.clock, self.boot = 1_000_000, ClockState.NEVER_SET, 1
        self.taken = 0
        self.kept: set[int] = set()  # values that must arrive
        self.batches: dict[tuple[int, int], bytes] = {}
        self.named: dict[object, tuple[int, int]] = {}
        self.epochs = 0
        self.start()

    def start(self) -> None:
        self.epochs += 1
        settings = BufferSettings(flush_interval=FLUSH, seal_interval=SEAL)
        self.buffer = Buffer(self.disk, settings, "g", self.boot, epoch=self.epochs)
        self.pending: dict[int, float] = {}  # not flushed yet, and since when
        self.tick()

    def tick(self) -> None:
        self.buffer.tick(self.now)
        if not self.buffer.stats().faults:
            due = {value for value, at in self.pending.items() if self.now - at >= FLUSH}
            self.kept |= due
            for value in due:
                del self.pending[value]

    @rule(
        count=st.integers(1, 5),
        durable=st.booleans(),
        seconds=st.sampled_from([1.0, FLUSH, FLUSH, FLUSH, SEAL]),
    )
    def take(self, count: int, durable: bool, seconds: float) -> None:
        for _ in range(count):
            self.taken += 1
            ms = round(self.now * 1000)
            instant = Instant(ms + self.offset, ms, self.clock)
            self.buffer.append(Reading("s" * 60, TEMPERATURE, instant, self.taken), durable=durable)
            self.pending[self.taken] = self.now - durable * FLUSH
        self.now += seconds
        self.tick()

    @rule()
    def take_more_than_a_batch_holds(self) -> None:
        self.take(1100, False, 1.0)

    @rule(ms=st.sampled_from([-3_600_000, 90, 10**11]), clock=st.sampled_from(ClockState))
    def step_the_clock(self, ms: int, clock: ClockState) -> None:
        self.offset = max(self.offset + ms, 1_000_000)
        self.clock = clock

    @rule(ack=st.booleans(), share=st.floats(0, 1))
    def deliver(self, ack: bool, share: float) -> None:
        for held in list(self.buffer.waiting()):
            if self.random.random() < share:
                self.receive(held)
                if ack:
                    self.buffer.acknowledge(held.sequence)

    @rule()
    def refuse_the_oldest(self) -> None:
        for held in list(self.buffer.waiting())[:1]:
            self.buffer.set_aside(held, 0x99)

    @rule()
    def somebody_asks_for_the_refused(self) -> None:
        self.disk.below("refused").write("retry", 0, b"")

    def receive(self, held) -> None:
        payload = self.buffer.payload(held)
        name = held.epoch, held.sequence
        if name in self.batches:
            assert self.batches[name] == payload
            return
        self.batches[name] = payload
        batch = decode(payload)
        assert (batch.epoch, batch.sequence) == name
        for reading in batch.readings:
            assert self.named.setdefault(reading.value, name) == name

    @rule(syncs=st.integers(1, 3))
    def syncs_fail(self, syncs: int) -> None:
        self.disk.failing = syncs

    @rule(reboot=st.booleans())
    def power_cut(self, reboot: bool) -> None:
        self.boot += reboot
        self.disk.failing = 0
        self.disk.crash(self.random)
        self.start()

    @rule()
    def kill_and_start(self) -> None:
        """What was written is still shown by the system, but need not be on the device."""
        self.disk.failing = 0
        self.start()

    @rule()
    def stop_and_start(self) -> None:
        self.disk.failing = 0
        self.buffer.close()
        self.kept |= self.pending.keys()
        self.start()

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        self.stop_and_start()
        self.somebody_asks_for_the_refused()
        self.tick()
        self.deliver(ack=True, share=1.1)
        self.tick()
        assert not self.buffer.stats().refused
        assert self.kept <= self.named.keys()
        assert self.buffer.stats().dropped <= self.taken - len(self.named)


PowerCuts.TestCase.settings = settings(max_examples=LENGTH, stateful_step_count=50)
TestPowerCuts = PowerCuts.TestCase
