"""A port that stays ours while nobody listens on it."""

import socket
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class Seat:
    """A port, a free one for 0, held while the context is open.

    A socket is bound to it that never listens: connects are refused, those who listen with
    SO_REUSEADDR get it, and Linux gives it to nobody who asks for any port, as it does with one
    that only was free a moment ago.
    """

    def __init__(self, port: int = 0, host: str = HOST) -> None:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
        except OSError:
            self.leave()
            raise
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Let go of the port."""
        self._socket.close()
