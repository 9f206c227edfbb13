"""What a receiver of the data does: decodes batches, drops those it has seen before, counts."""

import json
from dataclasses import dataclass, field
from typing import Any

from gateway.reading import Reading
from gateway.wire import WireError, decode
from hil.mqtt import Message


@dataclass(slots=True)
class Heard:
    """What has come of one sensor."""

    delivered: int = 0
    last: dict[str, Reading] = field(default_factory=dict)
    """The latest reading of each quantity."""


@dataclass(slots=True)
class Receiver:
    """Takes the messages of one gateway as they come to the broker."""

    sensors: dict[str, Heard] = field(default_factory=dict)
    delivered: int = 0
    """Readings of distinct batches."""
    batches: int = 0
    """Distinct batches."""
    duplicates: int = 0
    """Batches that had come before."""
    payload_bytes: int = 0
    """Of the distinct batches."""
    undecodable: list[str] = field(default_factory=list)
    """Why payloads were no batches."""
    status: dict[str, Any] = field(default_factory=dict)
    """The latest that the gateway itself said; empty before the first."""
    _seen: set[tuple[str, int, int]] = field(default_factory=set)

    def take(self, message: Message) -> None:
        """Take one message."""
        levels = message.topic.split("/")
        if levels[-1] == "status":
            self.status = json.loads(message.payload)
        elif "batch" in levels[-2:-1]:
            try:
                self._take_batch(message.payload)
            except WireError as error:
                self.undecodable.append(str(error))

    def _take_batch(self, payload: bytes) -> None:
        batch = decode(payload)
        name = batch.gateway, batch.epoch, batch.sequence
        if name in self._seen:
            self.duplicates += 1
            return
        self._seen.add(name)
        self.batches += 1
        self.payload_bytes += len(payload)
        self.delivered += len(batch.readings)
        for reading in batch.readings:
            heard = self.sensors.setdefault(reading.sensor, Heard())
            heard.delivered += 1
            last = heard.last.get(reading.quantity.name)
            if last is None or last.instant.wall_ms <= reading.instant.wall_ms:
                heard.last[reading.quantity.name] = reading

    @property
    def bytes_per_reading(self) -> float | None:
        """Bytes of payload for each reading; None before the first."""
        return round(self.payload_bytes / self.delivered, 2) if self.delivered else None
