"""Delivers batches over MQTT for ever: one session after the other, whatever the network does."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from datetime import UTC, datetime

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.wait import wait_base

from gateway.buffer import Buffer
from gateway.certificate import outlook
from gateway.connection import Connection, TakenOver, UplinkError, heed_cancel
from gateway.credentials import off_the_loop
from gateway.encoding import ENCODINGS
from gateway.lately import SAVED_WITHIN
from gateway.publisher import Unacknowledged
from gateway.ration import Outages, Ration
from gateway.retained import Status
from gateway.session import PATIENCE, Session
from gateway.settings import Broker, UplinkSettings
from gateway.suspects import LOSSES, Name
from gateway.uplinkstate import UplinkState

ACK_WITHIN = 15.0
"""Seconds after which a missing PUBACK means that the link is dead."""
GOODBYE = 1.0
"""Seconds that a session has to say that this gateway is offline."""
LOOK_EVERY = 3600.0
PINGS = 3
"""As many go by from one status of what comes and goes to the next: a metered link has few."""
STEADY = 30.0
"""Seconds after which a session that is lost is followed by the next one at once."""

log = logging.getLogger(__name__)


class Uplink:
    """Delivers what the buffer holds, for ever, whatever the network does."""

    def __init__(
        self,
        settings: UplinkSettings,
        gateway: str,
        buffer: Buffer,
        writer: Executor,
        *,
        about: bytes | None = None,
        wait: wait_base | None = None,
        ack_within: float = ACK_WITHIN,
        saved_within: float = SAVED_WITHIN,
        steady: float = STEADY,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.state = UplinkState(
            gap=1 / settings.backlog_rate if settings.backlog_rate else 0.0,
            changes=Ration(again=PINGS * settings.keepalive),
        )
        self._about, self._now = about, now
        self._ack_within, self._saved_within, self._steady = ack_within, saved_within, steady
        self._settings, self._gateway = settings, gateway
        self._buffer, self._writer = buffer, writer
        self._wait = wait_random_exponential(0.5, max=60) if wait is None else wait
        self._root = f"{settings.topic}/{gateway}"
        self._session: Session | None = None
        self._outages, self._known, self._delivers = Outages(), False, False
        self._told: dict[str, str] = {}  # what each broker's fault is, since one delivered
        self._left = False

    def wake(self) -> None:
        """Say that the buffer may hold more than before."""
        if self._session:
            self._session.news.set()

    async def watch(self) -> None:
        """Look at our certificate and the clock once an hour, for ever."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        """Note what is to be expected of TLS, and log it when it changes, which is once a day."""
        if not self._settings.url[0].tls:  # they are alike
            return
        now = datetime.fromtimestamp(self._now(), UTC)
        try:
            files = self._settings
            seen = await off_the_loop(lambda: outlook(files.cert_file, now, files.ca_file))
        except TimeoutError:
            return  # connecting tells which file is at fault
        before, self.state.outlook = self.state.outlook, seen
        # A fault is told with the connection that fails, unless none does
        if seen != before and (said := seen.fault if self.state.connected else seen.notice):
            log.warning("uplink: %s", said)

    async def run(self, status: Status) -> None:
        """Hold one session after the other, each with a client of its own.

        (A client that was entered again was deaf in 19 of 40 reconnects.) Pauses grow to 60 s, and
        start afresh after a session that delivered something, or lasted.
        """
        brokers = itertools.cycle(self._settings.url)
        while not self._left:
            async for attempt in AsyncRetrying(
                wait=self._wait,
                retry=retry_if_exception_type(UplinkError),
                before_sleep=self._failed,
            ):
                with attempt:
                    await self._hold_session(next(brokers), status)
            await asyncio.sleep(random.uniform(0, 1))  # not all gateways of a city at once

    def _failed(self, call: RetryCallState) -> None:
        self._say(str(call.outcome and call.outcome.exception()))

    def _say(self, why: str) -> None:
        broker = self.state.broker
        another = why != self._told.get(broker)
        if (more := self._outages.begin(another=another)) is not None:
            log.warning("uplink %s: %s%s", broker, why, more)
            self._told[broker] = why
        self.state.lost += self._delivers
        self.state.why, self._delivers = why, False

    def _works(self) -> None:
        """Note that it delivers; a CONNACK alone shows no more than that somebody listens."""
        known, self._known = self._known, True
        self.state.why, self._delivers = None, True
        self._told.clear()
        if self._outages.end() or not known:
            log.info("uplink %s: connected", self.state.broker)

    async def _hold_session(self, broker: Broker, status: Status) -> None:
        """Raise UplinkError, unless the session got on well before it was lost."""
        self.state.broker = broker.url
        await self._look()
        session: Session | None = None
        failure: BaseException | None = None
        try:
            client = await Connection.to(broker, self._settings, self._gateway, will=status.will())
            async with client.session():
                session = self._session = Session(
                    *(client, self._root, self._buffer, self._writer),
                    encode=ENCODINGS[self._settings.encoding],
                    state=self.state,
                    ack_within=self._ack_within,
                    saved_within=self._saved_within,
                    works=self._works,
                )
                self.state.connected = True
                try:
                    await session.run(status, self._settings.status_interval, self._about)
                finally:
                    if session.refused:  # the will would put itself in the place of what says why
                        await _say_goodbye(session, status)
                    session.end()
        except* (OSError, UplinkError) as group:
            failure = group.exceptions[0]
        finally:
            self.state.connected, self.state.pace, self._session = False, None, None
        heed_cancel()  # a task group prefers its child's error to it
        if self._left:
            return
        if isinstance(failure, Unacknowledged):
            self.state.patience = min(2 * self.state.patience, PATIENCE)
        if session and not isinstance(failure, TakenOver):
            self._suspect(session.culprit, f"{failure}")
        if session is None or isinstance(failure, TakenOver) or not self._got_on(session):
            fault = None if session else self.state.outlook.fault
            raise UplinkError(f"{failure}; {fault}" if fault else str(failure)) from failure
        self._say(str(failure))

    def _got_on(self, session: Session) -> bool:
        lasted = asyncio.get_running_loop().time() - session.began
        return session.delivered > 0 or (lasted >= self._steady and not session.refused)

    def _suspect(self, name: Name | None, failure: str) -> None:
        if name is None or not self.state.suspects.lost_at(name):
            return
        if isinstance(name, str):
            log.warning(
                "%s: the connection was lost %d times before the broker acknowledged it: it goes "
                "behind a batch from now on; is the link bad, or has this gateway no right to "
                "publish to %s/%s? The broker's log may say",
                *(name, LOSSES, self._root, name),
            )
        else:
            log.warning(
                "batch %d: it does not go, again and again, and others do: it goes last and alone "
                "from now on; does the broker or a firewall bound what a message may hold? (%s)",
                *(name[0], failure),
            )

    async def farewell(self, status: Status, within: float) -> None:
        """Deliver what waits as far as that is possible within so many seconds, and say goodbye."""
        self._left = True
        if session := self._session:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await session.drained()
            await _say_goodbye(session, status)


async def _say_goodbye(session: Session, status: Status) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE):
            await session.say_goodbye(status)
