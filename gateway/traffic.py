"""Bytes that a connection costs on a metered link: both ways, pings, TLS and headers."""

import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from gateway.disk import Disk

NAME = "traffic"
NOTED_EVERY = 3600.0
_SIZE = 1024
_DAY, _DAYS = 86_400, 30
_MOST = 1 << 53
"""What no count comes to, unless the file is damaged."""

# bytes_acked, bytes_received, segs_out and segs_in of struct tcp_info. Source: linux/tcp.h
_TCP_INFO = struct.Struct("=120xQQII")
_TCP_HEADER = 32
"""With timestamps, which Linux and its peers send."""
_IP_HEADERS = {socket.AF_INET: 20, socket.AF_INET6: 40}


def carried(sock: socket.socket) -> int:
    """Return the bytes of a TCP connection so far: data and the headers of TCP and IP, both ways.

    Of what had to be sent again the headers alone are counted twice.
    """
    sent, received, segments_out, segments_in = _info(sock)
    headers = _TCP_HEADER + _IP_HEADERS.get(sock.family, 40)
    return int(sent + received + (segments_out + segments_in) * headers)


def arrived(sock: socket.socket) -> int:
    """Return how many bytes of ours the other end's kernel has acknowledged."""
    return _info(sock)[0]


def _info(sock: socket.socket) -> tuple[int, int, int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    sent, received, segments_out, segments_in = _TCP_INFO.unpack(info)
    return sent, received, segments_out, segments_in


class Traffic:
    """Bytes of the last 30 days that the daemon has run, over its starts.

    The time that it runs is what it counts by: at a start the wall clock may be of any year. `note`
    and `write` are for the writer's thread, the others may run beside it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._lock = Lock()
        self._now, self._began = now, now()
        self._ran = 0.0  # before this start
        self._today = 0
        self._days = deque([0], maxlen=_DAYS)  # today's, then those of each day before
        self._next = 0.0

    def add(self, sent: int) -> None:
        """Count bytes of today."""
        with self._lock:
            self._turn()
            self._days[0] += sent

    @property
    def month(self) -> int:
        """Bytes of today and the 29 days before."""
        with self._lock:
            self._turn()
            return sum(self._days)

    def _turn(self) -> None:
        today = int(self._runs() // _DAY)
        for _ in range(today - self._today):
            self._days.appendleft(0)
        self._today = today

    def _runs(self) -> float:
        return self._ran + self._now() - self._began

    def recall(self, disk: Disk) -> None:
        """Go on where the run before ended, as far as that was noted."""
        with suppress(OSError, ValueError, TypeError):
            # At a pipe in its place whoever reads would wait for ever
            ran, *days = json.loads(disk.read(NAME, 0, _SIZE) if disk.exists(NAME) else b"")
            if all(0 <= number < _MOST for number in (ran, *days)):
                self._ran, self._today = ran, int(ran // _DAY)
                self._days.clear()
                self._days.extend(map(int, days or [0]))

    def note(self, disk: Disk) -> None:
        """Write it down if it was not within the last hour."""
        if self._runs() >= self._next:
            self.write(disk)

    def write(self, disk: Disk) -> None:
        """Write it down; where that fails it is not worth a fault."""
        with self._lock:
            self._turn()
            line = json.dumps([round(self._runs()), *self._days])
        with suppress(OSError):
            disk.note(NAME, line.encode().ljust(_SIZE))
        self._next = self._runs() + NOTED_EVERY
