"""The part of `bygate doctor` that talks to a broker: login, and the right to publish.

What is published is what the broker has, or gets, anyway: `about`, and the newest batch, which
receivers know by its name.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace

from gateway.about import about
from gateway.cli.doctor_network import now, took
from gateway.cli.finding import Told
from gateway.config import Config
from gateway.connection import Connection, UplinkError, heed_cancel
from gateway.disk import in_use
from gateway.encoding import ENCODINGS
from gateway.incoming import LARGEST_PACKET
from gateway.measure import counted
from gateway.publisher import Publisher
from gateway.reasons import REFUSED, TOO_LARGE, of_refusal, of_refused_batch, of_text
from gateway.retained import JSON
from gateway.session import NOBODY_SUBSCRIBES
from gateway.settings import Broker, UplinkSettings
from gateway.wire import DEFAULT_SIZE, Batch

BESIDE = "-doctor"
"""What our client id ends with while the daemon is connected under its own."""
GOODBYE_WITHIN = 1.0

Newest = tuple[bytes, Batch] | None


class Talk:
    """What one broker says. `within` bounds each wait for it, in seconds.

    `way` is how long the way to it took, which connecting goes once more.
    """

    def __init__(
        self,
        broker: Broker,
        config: Config,
        newest: Newest,
        told: Told,
        *,
        within: float,
        way: float,
    ) -> None:
        self._broker, self._config, self._newest = broker, config, newest
        self._told, self._within, self._way = told, within, way
        self._root = f"{config.uplink.topic}/{config.gateway.id}"
        self._at, self._began = "login", now()
        self._beside: str | None = None

    async def run(self) -> None:
        """Log in and publish; a broker may deny `about` by ending the connection."""
        if not await self._session() and self._at == "about":
            self._at = "batch"
            await self._session()

    async def _session(self) -> bool:
        """Connect and go on with the step at which it is; whether the last one was taken."""
        self._began = now()
        try:
            client = await Connection.to(
                self._broker, self._as_whom(), self._config.gateway.id, will=None
            )
            most = self._way + 3 * self._within
            async with asyncio.timeout(most) as bound, client.session():
                bound.reschedule(None)
                await self._steps(client)
                await _say_goodbye(client)
        except TimeoutError:
            said = of_text("Operation timed out", self._config.uplink, tls=self._broker.tls)
            self._fail(f"failed after {took(self._began)}", said)
        except UplinkError as error:
            self._fail(f"failed after {took(self._began)}", f"{error}")
        else:
            return True
        return False

    async def _steps(self, client: Connection) -> None:
        publisher = Publisher(client, self._root, 1.5 * self._within)
        if self._at == "login":
            self._logged_in(client, publisher)
            self._at = "about"
            await self._publish_about(client, publisher)
            self._at = "batch"
        await self._publish_batch(client, publisher)

    def _as_whom(self) -> UplinkSettings:
        """Return the settings, with a client id that throws no daemon off its connection."""
        settings = self._config.uplink
        runs = in_use(self._config.gateway.state_dir)
        if runs is False:
            self._beside = None
            return settings
        self._beside = "the daemon runs under" if runs else "the daemon, if it runs, has"
        return replace(settings, client_id=f"{settings.client_id}{BESIDE}")

    def _fail(self, seen: str, why: str) -> None:
        """Report it with what the client id may have to do with that."""
        if self._beside:
            why += (
                f"; or the rights hang on the client id {self._config.uplink.client_id!r}: "
                "sudo systemctl stop bygate, and try again"
            )
        self._told.fail(self._at, seen, why)

    def _logged_in(self, client: Connection, publisher: Publisher) -> None:
        whose, largest = self._config.uplink.client_id, client.largest_packet
        whom = f"{whose + BESIDE!r}, for {self._beside} {whose!r}" if self._beside else f"{whose!r}"
        seen = f"CONNACK after {took(self._began)} as client {whom}; "
        seen += f"it takes {counted(client.at_once, 'message')} at once"
        if largest < LARGEST_PACKET:
            seen += f", packets of at most {largest} bytes"
        if publisher.fits(bytes(DEFAULT_SIZE)):
            self._told.ok("login", seen)
        else:
            why = f"a batch may have {DEFAULT_SIZE}, and is set aside where that is too large: "
            self._told.warn("login", seen, why + of_refused_batch(TOO_LARGE))

    async def _publish_about(self, client: Connection, publisher: Publisher) -> None:
        topic, payload = f"{self._root}/about", about(self._config)
        if (code := await self._publish(client, publisher, "about", payload, JSON)) is not None:
            kept = ", kept for whoever subscribes" if code == NOBODY_SUBSCRIBES else ""
            self._told.ok("about", f"{self._acknowledged(topic, code)}{kept}")

    async def _publish_batch(self, client: Connection, publisher: Publisher) -> None:
        if self._newest is None:
            why = "try again when bygate has run for [buffer] seal_interval"
            self._told.warn("batch", "none on disk yet to try it with", why)
            return
        sealed, batch = self._newest
        topic, name = f"{self._root}/batch/backlog", "batch/backlog"
        payload, kind = ENCODINGS[self._config.uplink.encoding](sealed)
        code = await self._publish(client, publisher, name, payload, kind)
        if code is None:
            return
        seen = f"{self._acknowledged(topic, code)}, batch {batch.sequence} of epoch {batch.epoch}"
        if code == NOBODY_SUBSCRIBES:
            pattern = f"{self._config.uplink.topic}/+/batch/+"
            why = (
                f"nobody subscribes to {topic}: what is published there reaches nobody, and counts "
            )
            why += f"as delivered: have the receiver subscribe to {pattern}"
            self._told.warn("batch", seen, why)
        else:
            self._told.ok("batch", seen)

    def _acknowledged(self, topic: str, code: int) -> str:
        seen = f"{topic}: PUBACK 0x{code:02x} after {took(self._began)}"
        if self._config.uplink.protocol == "3.1.1":
            seen += " (MQTT 3.1.1 does not say whether it was kept, nor that nobody subscribes)"
        return seen

    async def _publish(
        self, client: Connection, publisher: Publisher, name: str, payload: bytes, kind: str
    ) -> int | None:
        """Return the reason code of the PUBACK, None when it was refused, and that reported."""
        of = of_refused_batch if kind != JSON else of_refusal
        if not publisher.fits(payload):
            seen = f"{len(payload)} bytes, in packets of at most {client.largest_packet}"
            self._told.fail(self._at, seen, of(TOO_LARGE))
            return None
        self._began = now()
        sent = publisher.send(name, payload, retain=kind == JSON, kind=kind)
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(client.lost())
                code = await publisher.code(sent)
                watching.cancel()
        except BaseExceptionGroup as group:
            heed_cancel()  # a task group prefers its child's error to it
            raise group.exceptions[0] from None
        if code < REFUSED:
            return code
        why = of(code) if code == TOO_LARGE else of_refusal(code, sent.topic)
        self._fail(f"{sent.topic}: refused after {took(self._began)}", why)
        return None


async def _say_goodbye(client: Connection) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_WITHIN):
            await client.say_goodbye()
