"""The protocol of journal and spool, driven at random and cut off at random."""

import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from random import Random

from crash_disk import PAGE, CrashDisk, PowerCut
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from trials import LONG, times

from gateway.buffer import Buffer
from gateway.held import Held
from gateway.reading import TEMPERATURE, ClockState, Instant, Reading
from gateway.record import Kind, records
from gateway.settings import BufferSettings
from gateway.wire import decode

FLUSH, SEAL = 10.0, 60.0
SMALL = 8000
"""Bytes that a buffer may have which soon evicts; each start begins a segment.

A refused batch takes 4096 of them.
"""


@dataclass
class Image:
    """A copy of a disk, and what it holds that is to be delivered."""

    disk: CrashDisk
    values: set[object]
    again: int = 0
    """How many readings lie aside on it, or are damaged and uncounted: they may go once more."""


class PowerCuts(RuleBasedStateMachine):
    """A gateway on a disk whose power fails, and a receiver that de-duplicates."""

    @initialize(seed=st.integers(0, 1 << 32), max_size=st.sampled_from([None, SMALL]))
    def install(self, seed: int, max_size: int | None) -> None:
        self.random = Random(seed)
        self.settings = BufferSettings(
            flush_interval=FLUSH, seal_interval=SEAL, max_size=max_size, keep_free=0
        )
        self.disk = CrashDisk()
        self.now = 0.0
        self.offset, self.clock, self.boot = 1_000_000, ClockState.NEVER_SET, 1
        self.taken = 0
        self.kept: set[int] = set()  # values that must arrive
        self.batches: dict[tuple[int, int], list[object]] = {}
        self.named: dict[object, tuple[int, int]] = {}
        self.epochs = 0
        self.bounded = max_size is not None
        self.on_disk: dict[tuple[int, int], set[object]] = {}  # values by batch
        self.evicted: set[object] = set()
        self.acked: set[object] = set()
        self.unnoted: set[object] = set()  # acknowledged, which is in RAM alone
        self.doubtful: set[object] = set()  # delivered, and waits again: it may be evicted, too
        self.refused: set[object] = set()  # of what lies aside the oldest may go, too
        # Such a one comes back with a power cut that takes `acked` away, and may go a second time
        self.twice = 0
        self.wiped = False
        self.unsure = 0  # told as "at most"
        self.images: list[Image] = []
        self.taken_away: set[object] = set()  # with a disk that was replaced
        self.forgotten: set[object] = set()  # of what a power cut came before it was counted
        self.renamed: set[object] = set()  # got another name in this run, on another disk
        self.two_names: set[object] = set()  # did so in one before, which nobody knows any more
        self.start()

    def start(self) -> None:
        self.hear()
        self.epochs += 1
        self.two_names |= self.renamed
        self.renamed.clear()
        self.disk.reopen()
        self.buffer = Buffer(self.disk, self.settings, "g", self.boot, epoch=self.epochs)
        self.pending: dict[int, float] = {}  # not flushed yet, and since when
        self.tick()

    def hear(self) -> None:
        """Hear what the run that ends has told: some of it only once its disk worked again."""
        told = " ".join(self.buffer.stats().faults) if self.epochs else ""
        self.unsure += sum(map(int, re.findall(r"at most (\d+)", told)))

    def tick(self) -> None:
        self.buffer.tick(self.now)
        if not self.buffer.fault:
            self.unnoted.clear()
        self.see_what_went()
        if self.buffer.unsaved == 0:
            self.kept |= self.pending.keys()
            self.pending.clear()
        if not self.buffer.fault:
            due = {value for value, at in self.pending.items() if self.now - at >= FLUSH}
            self.kept |= due
            for value in due:
                del self.pending[value]

    def see_what_went(self) -> None:
        """What is neither acknowledged nor there any more was evicted; that is counted."""
        waiting = {(held.epoch, held.sequence): held for held in self.buffer.waiting()}
        for name in self.on_disk.keys() - waiting.keys():
            if self.lies_aside(*name):  # a start on a full disk has only now let go of its copy
                self.refused |= self.on_disk.pop(name)
                continue
            self.count_again(self.on_disk[name])
            self.evicted |= self.on_disk.pop(name)
        for name, held in waiting.items():
            if len(before := self.on_disk.get(name, set())) == held.readings > 0:
                continue
            batch = decode(self.buffer.payload(held))
            self.on_disk[name] = {reading.value for reading in batch.readings}
            if went := before - self.on_disk[name]:  # the journal had but its beginning
                self.count_again(went)
                self.evicted |= went
            if self.wiped:  # on a full disk the journal could not save it before
                self.twice += len(self.evicted & self.on_disk[name])
                self.evicted -= self.on_disk[name]
        assert self.buffer.fault or len(self.lost) <= self.buffer.stats().dropped

    @property
    def lost(self) -> set[object]:
        """What came back after it was delivered, and was wiped then, need not be counted."""
        return self.evicted - self.acked if self.wiped else self.evicted

    def count_again(self, went: set[object]) -> None:
        """What was counted as lost, or might be, came back since, and may be counted once more."""
        self.twice += len((self.refused | self.evicted | self.forgotten) & went)

    def lies_aside(self, epoch: int, sequence: int) -> bool:
        return any(n.startswith(f"{sequence}-{epoch}-") for n in self.buffer.stats().refused)

    def let_go(self, held: Held) -> None:
        self.on_disk.pop((held.epoch, held.sequence))

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
                    self.acked |= self.on_disk[held.epoch, held.sequence]
                    self.unnoted |= self.on_disk[held.epoch, held.sequence]
                    self.buffer.acknowledge(held)
                    self.let_go(held)

    @rule()
    def refuse_the_oldest(self) -> None:
        self.disk.failing = 0
        for held in list(self.buffer.waiting())[:1]:
            self.receive(held)
            if not self.lies_aside(held.epoch, held.sequence):
                self.twice += len(self.refused & self.on_disk[held.epoch, held.sequence])
            try:
                self.buffer.set_aside(held, 0x99)
            except OSError:  # it stays, and the session ends
                return
            self.refused |= self.on_disk[held.epoch, held.sequence]
            self.let_go(held)

    @rule()
    def somebody_asks_for_the_refused(self) -> None:
        self.disk.below("refused").write("retry", 0, b"")

    def receive(self, held: Held) -> None:
        payload = self.buffer.payload(held)
        name = held.epoch, held.sequence
        batch = decode(payload)
        assert (batch.epoch, batch.sequence) == name
        values = [reading.value for reading in batch.readings]
        if name in self.batches:  # the journal, or an image's, may have a part of it alone
            less, more = sorted((self.batches[name], values), key=len)
            assert set(less) <= set(more)
            assert self.images or self.wiped or self.batches[name] == values
            return
        self.batches[name] = values
        for value in values:
            assert self.named.setdefault(value, name) == name or value in self.two_names

    @rule(syncs=st.integers(1, 3))
    def syncs_fail(self, syncs: int) -> None:
        self.disk.failing = syncs

    @rule()
    def a_spot_wears_out(self) -> None:
        """Only where the newest segment lies: the next one has to do."""
        self.disk.bad.update([n for n in self.disk.names() if n.endswith(".seg")][-1:])

    @rule(room=st.integers(0, SMALL))
    def others_fill_the_disk(self, room: int) -> None:
        self.disk.limit = self.disk.used + room
        self.bounded = True

    @rule()
    def they_free_it(self) -> None:
        self.disk.limit = None

    @rule(reboot=st.booleans())
    def power_cut(self, reboot: bool) -> None:
        self.boot += reboot
        self.disk.failing = 0
        self.crash()

    @rule(
        place=st.floats(0, 1),
        length=st.sampled_from([1, 100, PAGE]),
        filling=st.sampled_from([b"\0", b"\xff", b"b"]),
    )
    def power_cut_that_wipes_a_block(self, place: float, length: int, filling: bytes) -> None:
        self.disk.failing = 0
        self.doubtful |= self.acked
        self.twice += self.buried()
        self.disk.crash(self.random)
        names = [name for name in self.disk.names() if name.endswith(".seg")]
        sizes = [self.disk.size(name) for name in names]
        at = int(place * sum(sizes))
        for name, size in zip(names, sizes, strict=True):
            if 0 <= at < size:
                self.disk.wipe(name, at, at + length, filling)
            at -= size
        self.bounded = self.wiped = True
        self.start()

    def buried(self) -> int:
        """Count what went with segments that may be there again, and the record of it be wiped."""
        segments = [data for name, data in self.disk.may_be_there().items() if ".seg" in name]
        batches = {
            (record.epoch, record.sequence): record.readings
            for record in chain.from_iterable(map(records, segments))
            if record.kind == Kind.BATCH
        }
        return sum(readings for name, readings in batches.items() if name not in self.on_disk)

    @rule(changes=st.integers(0, 12), starting=st.booleans())
    def power_cut_while_it_writes(self, changes: int, starting: bool) -> None:
        self.disk.failing = 0
        self.disk.fuse = changes
        with suppress(PowerCut):
            if starting:
                self.start()
            self.take(3, True, SEAL)
        self.crash()

    def crash(self) -> None:
        self.doubtful |= self.acked
        self.disk.crash(self.random)
        self.start()

    @rule(changes=st.integers(0, 12), starting=st.booleans())
    def kill_while_it_writes(self, changes: int, starting: bool) -> None:
        """Half of a change may be shown by the system, and be on the device or not."""
        self.disk.failing = 0
        self.doubtful |= self.unnoted
        self.disk.fuse = changes
        with suppress(PowerCut):
            if starting:
                self.start()
            self.take(3, True, SEAL)
        self.disk.fuse = None
        self.start()

    @rule()
    def kill_and_start(self) -> None:
        """What was written is still shown by the system, but need not be on the device."""
        self.disk.failing = 0
        self.doubtful |= self.unnoted
        self.start()

    @rule()
    def stop_and_start(self) -> None:
        self.disk.failing = 0
        self.buffer.close()
        if not self.buffer.fault:
            self.kept |= self.pending.keys()
        self.start()

    @rule()
    def somebody_copies_the_directory(self) -> None:
        self.images.append(self.image())

    def image(self) -> "Image":
        values = set().union(*self.on_disk.values()) | (self.in_ram() & self.kept)
        aside = sum(len(self.batches[a.epoch, a.sequence]) for a in self.buffer._refused._sizes)
        damaged = sum(damage.lost or 0 for damage in self.buffer._spool.damage())
        return Image(self.disk.image(), values, aside + damaged)

    def in_ram(self) -> set[object]:
        parts = [*self.buffer._intake.sealed, *filter(None, [self.buffer._intake.filling])]
        return {reading.value for part in parts for reading in part.readings}

    def another_box_leaves_its_disk(self, count: int, share: float) -> None:
        theirs = {"disk": CrashDisk(), "on_disk": {}, "evicted": set(), "kept": set()}
        more = ("buffer", "pending", "renamed", "now", "unsure")
        ours = {name: getattr(self, name) for name in (*theirs, *more)}
        vars(self).update(theirs, renamed=set())
        self.start()
        for _ in range(count):
            self.take(2, False, SEAL)
        self.deliver(True, share)
        self.take(2, True, 1.0)
        self.images.append(self.image())
        self.forgotten |= self.evicted
        vars(self).update(ours)

    @rule(
        which=st.integers(0, 99),
        syncs=st.sampled_from([0, 0, 1, 2]),
        changes=st.none() | st.integers(0, 20),
        count=st.integers(0, 2),
        theirs=st.integers(0, 4),
    )
    def another_disk_is_put_in_place(
        self, which: int, syncs: int, changes: int | None, count: int, theirs: int
    ) -> None:
        """An older image, an empty one, or another box's; the daemon goes on.

        Counted is what was on the one before and is not on it. What it holds, also in its journal,
        is delivered: once more if it was before, and then there may be more in a batch of the same
        name. What waits in RAM is no more flushed than what has just come. A power cut before all
        that is done costs what is not on it, uncounted.
        """
        self.take(count, True, 1.0)
        if theirs:
            which = len(self.images)
            self.another_box_leaves_its_disk(theirs, self.random.random())
        image = [*self.images, Image(CrashDisk(), set())][which % (len(self.images) + 1)]
        gone, self.on_disk = self.on_disk, {}
        unsealed = [frame for parts in self.buffer._store._unsealed or () for frame in parts]
        gone[0, 0] = {reading.value for frame in unsealed for reading in frame.readings}
        for name in filter(lambda name: self.lies_aside(*name), list(gone)):
            self.refused |= gone.pop(name)  # counted, and perhaps delivered since
        in_ram, named_anew = self.in_ram(), len(self.buffer._intake.renamed)
        self.kept -= in_ram
        self.pending |= dict.fromkeys(in_ram, self.now - FLUSH)
        self.doubtful |= self.acked
        # What was delivered may have waited again, and gone in the very tick of a start
        self.twice += image.again + len(image.values & self.doubtful)
        self.disk.swap(image.disk)
        self.disk.failing, self.disk.fuse = syncs, changes
        try:
            for _ in range(1 + syncs):
                self.buffer.tick(self.now)
            cut = False
        except PowerCut:
            cut = True
        if len(self.buffer._intake.renamed) > named_anew:
            self.renamed |= in_ram
        self.disk.fuse = None
        if cut:
            self.forget(gone, image)
            self.crash()
        else:
            assert not self.buffer.fault
            self.see_what_went_with(gone, image)
            self.tick()

    def forget(self, gone: dict[tuple[int, int], set[object]], image: "Image") -> None:
        went = image.values.union(*gone.values())
        self.count_again(went)
        self.forgotten |= self.evicted | went
        self.evicted = set()
        self.kept = (self.kept & self.named.keys()) | (image.values - self.renamed)

    def see_what_went_with(self, gone: dict[tuple[int, int], set[object]], image: "Image") -> None:
        here: dict[tuple[int, int], set[object]] = {}
        for held in self.buffer.waiting():
            batch = decode(self.buffer.payload(held))
            here[batch.epoch, batch.sequence] = {reading.value for reading in batch.readings}
        went = set().union(*(values - here.get(name, set()) for name, values in gone.items()))
        self.taken_away |= went
        missing = image.values.difference(self.in_ram(), self.renamed, *here.values())
        assert self.bounded or not missing
        self.count_again(went | missing)
        self.evicted |= went | missing
        self.kept |= image.values.intersection(*[set().union(*here.values())])

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        self.they_free_it()
        self.disk.fuse = None  # of what has failed meanwhile
        self.stop_and_start()
        for _ in range(4):  # of a start the disk may fail where it is worn, before all is done
            self.tick()
        self.somebody_asks_for_the_refused()
        self.tick()
        self.deliver(ack=True, share=1.1)
        self.tick()
        self.hear()
        assert not self.buffer.stats().refused
        # What a start seals, it may evict in the same tick, before anybody can see it
        unseen = self.kept - self.named.keys() - self.evicted
        assert self.bounded or not (unseen or self.evicted - self.taken_away)
        arrived = self.named.keys() - self.evicted - self.refused - self.doubtful - self.forgotten
        lost = len(self.lost) + len(unseen)
        most = self.taken - len(arrived) + self.twice + self.unsure
        assert lost <= self.buffer.stats().dropped <= most


# The short form tries the same histories each time, the full one others: it is for searching
PowerCuts.TestCase.settings = settings(
    max_examples=times(200, 5000), stateful_step_count=50, derandomize=not LONG
)
TestPowerCuts = PowerCuts.TestCase
