"""Bytes that a connection costs on a metered link: both ways, pings, TLS and headers."""

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable

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
    """Bytes of the last 30 days, as far as the daemon has been running."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._days: Counter[int] = Counter()

    def add(self, sent: int) -> None:
        """Count bytes of today."""
        self._days[self._day()] += sent

    @property
    def month(self) -> int:
        """Bytes of today and the 29 days before."""
        oldest = self._day() - 29
        for day in [day for day in self._days if day < oldest]:
            del self._days[day]
        return self._days.total()

    def _day(self) -> int:
        return int(self._now() // 86_400)
