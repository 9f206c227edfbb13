"""Counters and ages of everything as one snapshot: published, logged, shown by `status`."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

from gateway import __version__
from gateway.buffer import Buffer, Stats
from gateway.clock import Clock
from gateway.connection import WINDOW
from gateway.driver import PortError
from gateway.poller import Poller, SensorState
from gateway.uplinkstate import UplinkState

LISTED = 20
"""How many of the batches that are held back are listed."""
_ISO = "%Y-%m-%dT%H:%M:%SZ"


class Health:
    """Looks at the parts of the gateway; changes none of them."""

    def __init__(
        self,
        gateway: str,
        clock: Clock,
        buffer: Buffer,
        pollers: Sequence[Poller],
        uplink: UplinkState,
        *,
        drivers: Mapping[str, str] | None = None,
        adapters: Callable[[], Mapping[str, object]] = dict,
        volatile: str | None = None,
    ) -> None:
        """`drivers` are their names in the configuration, by sensor.

        `volatile` is the kind of the buffer's file system, if it does not outlast a reboot.
        """
        self._gateway, self._clock = gateway, clock
        self._buffer, self._pollers, self._uplink = buffer, pollers, uplink
        self._drivers, self._adapters, self._volatile = drivers or {}, adapters, volatile
        self._since = clock.now()
        self._told_to_wait = False

    def payload(self, state: str) -> bytes:
        """Return the snapshot as JSON."""
        return _json(self.snapshot(state))

    def will(self, state: str = "offline") -> bytes:
        """Return what the broker says in our place when we vanish: who it was, and no more.

        It travels in every CONNECT, where MQTT has 65 535 bytes for it and a broker may take less.
        """
        return _json(self._who(state))

    def digest(self) -> object:
        """Return what is worth a message when it changes."""
        stats = self._buffer.stats()
        reasons = tuple(_reason(poller.state) for poller in self._pollers)
        known = [rate is not None for rate in self._of_rates(stats).values()]
        buffer = stats.dropped, tuple(stats.refused), tuple(stats.faults), known
        uplink = self._uplink
        told = tuple(uplink.suspects), uplink.outlook, uplink.unheard > 0, uplink.why
        lag = self._lag(stats)
        return self._clock.state(), reasons, self._adapters(), buffer, told, lag

    def _lag(self, stats: Stats) -> object:
        """Return what changes when the end of a backlog is foretold, and when it has come."""
        waiting = stats.waiting_batches
        foretold = waiting > WINDOW and self._caught_up_in_s(stats) is not None
        return foretold, self._told_to_wait and not waiting

    def snapshot(self, state: str) -> dict[str, object]:
        """Return everything known now; `state` is online or offline."""
        return {
            **self._who(state),
            "clock": {"state": self._clock.state(), "error_ms": self._clock.error_ms()},
            "buffer": self._of_buffer(),
            "uplink": self._of_uplink(online=state == "online"),
            "bluetooth": self._adapters(),
            "sensors": {poller.name: self._of_sensor(poller) for poller in self._pollers},
        }

    def _who(self, state: str) -> dict[str, object]:
        now = self._clock.now()  # it may have been set since
        return {
            "state": state,
            "gateway": self._gateway,
            "version": __version__,
            "since": utc(now.wall_ms - now.boot_ms + self._since.boot_ms),
            "boot": self._clock.boot,
            "epoch": self._buffer.epoch,
        }

    def _of_buffer(self) -> dict[str, object]:
        stats = self._buffer.stats()
        self._told_to_wait = stats.waiting_batches > 0
        return {
            "taken_readings": stats.taken,
            "waiting_batches": stats.waiting_batches,
            "waiting_readings": stats.waiting_readings,
            "oldest_waiting": None if stats.oldest_ms is None else utc(stats.oldest_ms),
            "refused": stats.refused,
            "dropped": stats.dropped,
            "dropped_by": stats.dropped_by,
            **self._of_rates(stats),
            "disk_errors": stats.disk_errors,
            "faults": stats.faults,
            "volatile": self._volatile,
        }

    def _of_rates(self, stats: Stats) -> dict[str, object]:
        rates = stats.rates
        return {
            "room_days": None if rates is None else rates.room_days(stats.room),
            "written_bytes_day": None if rates is None else rates.written_day,
        }

    def _of_uplink(self, *, online: bool) -> dict[str, object]:
        state = self._uplink
        return {
            "connected": online and state.connected,  # the last words stay when they no longer are
            "broker": state.broker,
            "lost": state.lost,
            "last_ack": None if state.last_ack_ms is None else utc(state.last_ack_ms),
            "caught_up_in_s": self._caught_up_in_s(self._buffer.stats()),
            "unheard": state.unheard,
            "held_back": list(islice(state.suspects, LISTED)),
            "bytes_month": state.traffic.month,
            "certificate": self._of_certificate(),
            "why": state.why,
        }

    def _of_certificate(self) -> dict[str, object]:
        seen = self._uplink.outlook
        return {
            "until": None if seen.until is None else f"{seen.until:{_ISO}}",
            "why": seen.fault or seen.notice,
        }

    def _caught_up_in_s(self, stats: Stats) -> int | None:
        """Return how long what waits takes at the present pace, or at backlog_rate."""
        seconds = None if stats.blocked else self._uplink.catch_up(stats.waiting_batches)
        return None if seconds is None else math.ceil(seconds)

    def _of_sensor(self, poller: Poller) -> dict[str, object]:
        state, now = poller.state, self._clock.now().boot_ms
        latest = max((r.instant.boot_ms for r in state.last.values()), default=None)
        return {
            "driver": self._drivers.get(poller.name),
            "link": poller.driver.link,
            "state": "ok" if state.why is None and state.last else "silent",
            "last": {q.name: {"value": r.value, "unit": q.unit} for q, r in state.last.items()},
            "age_s": None if latest is None else (now - latest) / 1000,
            "outcomes": dict(state.outcomes),
            "why": state.why,
        }


def _reason(state: SensorState) -> object:
    """Return what stays the same while a sensor fails for one reason; its text may count."""
    if state.why is None:
        return None
    return state.why if state.latest == PortError.outcome else state.latest


def _json(fields: dict[str, object]) -> bytes:
    # A message of the operating system may hold bytes that are no text: a ? stands for each
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace")


def utc(ms: float) -> str:
    """Return Unix ms as UTC, to the second."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):{_ISO}}"
