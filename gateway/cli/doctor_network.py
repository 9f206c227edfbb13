"""The part of `bygate doctor` that is about the way to a broker: DNS, TCP, TLS."""

import asyncio
import ipaddress
import os
import socket
import ssl
from datetime import UTC, datetime
from typing import Any

from gateway.certificate import AHEAD
from gateway.cli.finding import Told
from gateway.measure import counted
from gateway.reasons import of_text
from gateway.settings import Broker, UplinkSettings

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]
_SILENT = "each connection waits for the silent one first: mend the route, or name the other in url"


class Network:
    """The way to one broker. `within` bounds each wait, in seconds."""

    def __init__(
        self, broker: Broker, settings: UplinkSettings, told: Told, *, within: float
    ) -> None:
        self._broker, self._settings = broker, settings
        self._told, self._within = told, within

    async def carries(self, tls: ssl.SSLContext | None) -> bool:
        """Whether the broker can be talked to, by TLS unless that is None."""
        addresses = await self._look_up()
        link = await self._reach(addresses) if addresses else None
        if link is None:
            return False
        with link:
            return tls is None or await self._shake_hands(link, tls)

    def _why(self, said: str) -> str:
        return of_text(said, self._settings, tls=self._broker.tls)

    async def _look_up(self) -> list[_Address]:
        """Return the broker's addresses, in the order in which they are tried."""
        host, began, loop = self._broker.host, now(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._within):
                found = await loop.getaddrinfo(host, self._broker.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            why = "no DNS server answers: is there a network?"
            self._told.fail("dns", f"nothing for {host} within {self._within:g} s", why)
            return []
        except (OSError, UnicodeError) as error:  # a..b is no name that DNS could have
            self._told.fail("dns", f"{host} after {took(began)}", self._why(str(error)))
            return []
        named = ", ".join(dict.fromkeys(str(address[0]) for *_, address in found))
        seen = "is an address" if _is_address(host) else f"is {named}, after {took(began)}"
        self._told.ok("dns", f"{host} {seen}")
        return [(family, address) for family, *_, address in found]

    async def _reach(self, addresses: list[_Address]) -> socket.socket | None:
        """Return a connection to the first address that answers."""
        deaf: list[str] = []
        silent, why = False, ""
        for family, address in addresses:
            began = now()
            try:
                async with asyncio.timeout(self._within):
                    link = await _connected(family, address)
            except TimeoutError:
                silent, why = True, f"timed out after {self._within:g} s"
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
            else:
                answered = f"{_shown(address)} answered after {took(began)}"
                self._reached("; ".join([*deaf, answered]), silent=silent)
                return link
            deaf.append(f"{_shown(address)} {why}")
        _, _, remedy = self._why(why).partition(": ")
        self._told.fail("tcp", "; ".join(deaf), remedy or "check [uplink] url, and the network")
        return None

    def _reached(self, seen: str, *, silent: bool) -> None:
        if silent:
            self._told.warn("tcp", seen, _SILENT)
        else:
            self._told.ok("tcp", seen)

    async def _shake_hands(self, link: socket.socket, context: ssl.SSLContext) -> bool:
        """Whether TLS is spoken there, and the broker is who it should be."""
        began = now()
        try:
            async with asyncio.timeout(self._within):
                _, writer = await asyncio.open_connection(
                    sock=link, ssl=context, server_hostname=self._broker.host
                )
        except TimeoutError:
            said = "the handshake operation timed out"
        except (OSError, ValueError) as error:  # some names are none for TLS
            said = str(error) or "EOF within the handshake"
        else:
            self._secured(writer.get_extra_info("ssl_object"), began)
            writer.transport.abort()
            return True
        self._told.fail("tls", f"failed after {took(began)}", self._why(said))
        return False

    def _secured(self, tls: ssl.SSLObject, began: float) -> None:
        shown = tls.getpeercert() or {}
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
        seen = f"{tls.version()} after {took(began)}, its certificate valid until {until:%Y-%m-%d}"
        left = until - datetime.now(UTC)
        if left > AHEAD:
            self._told.ok("tls", seen)
        else:
            ends = f"it expires in {counted(left.days, 'day')}"
            self._told.warn("tls", seen, f"{ends}: have the broker's certificate renewed")


async def _connected(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, address)
    except BaseException:
        link.close()
        raise
    return link


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shown(address: tuple[Any, ...]) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def took(began: float) -> str:
    """Return how long it is since then."""
    return f"{(now() - began) * 1000:.0f} ms"
