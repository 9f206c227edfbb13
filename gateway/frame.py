"""Frames in a stream of bytes: how they are declared, and how they are cut out of it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Length:
    """A field of a frame that says how long the frame is.

    The whole frame has `extra` bytes more than the number in the `size` bytes at offset `at`.
    """

    at: int
    size: int = 1
    extra: int = 0
    order: Literal["big", "little"] = "big"


@dataclass(frozen=True, slots=True)
class Frame:
    r"""How frames stand in a stream of bytes.

    By start and length (a number, or a `Length` field), or by start and end. `start` may be empty
    for lines that only have an end. No frame is longer than `longest`.

    >>> Frame(start=b"\xaa\xc0", length=10)
    >>> Frame(start=b"BM", length=Length(at=2, size=2, extra=4))
    >>> Frame(start=b"$", end=b"\r\n")
    """

    start: bytes = b""
    end: bytes = b""
    length: int | Length | None = None
    longest: int = 1024

    def __post_init__(self) -> None:
        """Refuse a declaration that cannot cut anything."""
        if not (isinstance(self.start, bytes) and isinstance(self.end, bytes)):
            raise TypeError("a Frame's start and end are bytes")
        if not isinstance(self.length, int | Length | None):
            raise TypeError("a Frame's length is a number or a Length")
        if not isinstance(self.longest, int) or self.longest < 1:
            raise ValueError("a Frame's longest is a number of bytes")
        if isinstance(self.length, int) and not len(self.start) <= self.length <= self.longest:
            raise ValueError("a Frame's length is from that of its start to its longest")
        if (self.length is None) == (not self.end):
            raise ValueError("a Frame has either a length or an end")
        if self.length is not None and not self.start:
            raise ValueError("a Frame with a length needs a start to be found by")

    def size(self, stream: bytearray) -> int | None:
        """Return the length of the frame at the head of `stream`; None: unknown yet, 0: none."""
        if self.length is None:
            return self._to_end(stream)
        if isinstance(self.length, int):
            return self.length
        field = self.length
        if len(stream) < field.at + field.size:
            return None
        said = int.from_bytes(stream[field.at : field.at + field.size], field.order)
        size = said + field.extra
        return size if max(field.at + field.size, len(self.start)) <= size <= self.longest else 0

    def _to_end(self, stream: bytearray) -> int | None:
        at = stream.find(self.end, len(self.start), self.longest)
        if at >= 0:
            return at + len(self.end)
        return 0 if len(stream) >= self.longest else None


class Framer:
    """Cuts a stream of bytes into frames, and finds its feet again after noise and half frames.

    A frame that turns out to be bad is given back with `reject`: the search goes on one byte after
    its start, so that a good frame swallowed by half of another is still found.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._stream = bytearray()
        self._last = b""
        self._cut_off = 0  # bytes in the frames returned so far
        self._bad_until = 0  # where in all that has come the last bad frame ends
        self.skipped = 0
        """Bytes that belonged to no frame."""

    def feed(self, data: bytes) -> None:
        """Take bytes as they came; what is too old to belong to a frame any more goes."""
        self._stream += data
        self._skip(len(self._stream) - max(len(data), 4 * self._frame.longest))

    def clear(self) -> None:
        """Forget what has come so far."""
        self._skip(len(self._stream))
        self._last = b""

    def reject(self) -> bool:
        """Take back the frame that `next` returned last, all but its first byte.

        True when it is a bad frame of its own, to be told of; False when it began inside the one
        before: the search passes many false starts in one bad frame.
        """
        self._cut_off -= len(self._last)
        start, end = self.skipped + self._cut_off, self.skipped + self._cut_off + len(self._last)
        self._stream[:0] = self._last[1:]
        self._last = b""
        self.skipped += 1
        if start < self._bad_until:
            return False
        self._bad_until = end
        return True

    def next(self) -> bytes | None:
        """Return the next whole frame, or None until more bytes have come."""
        while self._at_start():
            size = self._frame.size(self._stream)
            if size is None or size > len(self._stream):
                return None
            if size:
                return self._cut(size)
            self._skip(1)
        return None

    def _at_start(self) -> bool:
        start = self._frame.start
        at = self._stream.find(start)
        if at < 0:  # the head of a start may be all that has come of it
            at = next(
                (len(self._stream) - n for n in range(len(start) - 1, 0, -1) if self._ends(n)),
                len(self._stream),
            )
        self._skip(at)
        return len(self._stream) >= max(len(start), 1)

    def _ends(self, n: int) -> bool:
        return self._stream.endswith(self._frame.start[:n])

    def _cut(self, size: int) -> bytes:
        # Text protocols: a later start before the end means that the first was half a frame.
        if self._frame.end and self._frame.start and self._frame.start != self._frame.end:
            self._skip(max(self._stream.rfind(self._frame.start, 0, size), 0))
            size = self._stream.find(self._frame.end, len(self._frame.start)) + len(self._frame.end)
        self._last = bytes(self._stream[:size])
        del self._stream[:size]
        self._cut_off += size
        return self._last

    def _skip(self, count: int) -> None:
        if count > 0:
            self.skipped += count
            del self._stream[:count]
