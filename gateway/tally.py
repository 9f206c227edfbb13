"""How each sensor's turns ended, once an hour, as readings that are buffered like any other.

So a receiver tells "no rain" from "no gauge", also of a time when it heard no status.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence

from gateway.clock import Clock
from gateway.poller import OK, Poller
from gateway.reading import OUTCOME, Quantity, Reading

EVERY = 3600.0


class Tally:
    """Counts what became of each sensor's turns since it was told last."""

    def __init__(self, pollers: Sequence[Poller], clock: Clock, every: float = EVERY) -> None:
        self._clock, self._every = clock, every
        self._told = [(poller, Counter({OK: 0})) for poller in pollers]

    async def run(self) -> None:
        """Tell every so often, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self._every
            await asyncio.sleep(due - loop.time())
            self.tell()

    def tell(self) -> None:
        """Give each sensor's sink its counts; an outcome that was once counted is told as 0, too.

        Aggregates are stamped at the end of their period.
        """
        instant = self._clock.now()
        for poller, told in self._told:
            for outcome in {**told, **poller.state.outcomes}:
                count = poller.state.outcomes[outcome]
                quantity = quantity_of(outcome)
                poller.sink(Reading(poller.name, quantity, instant, count - told[outcome]))
                told[outcome] = count


def quantity_of(outcome: str) -> Quantity:
    """Return the quantity that counts an outcome: `outcome_no_reply` of "no reply"."""
    return OUTCOME.part(re.sub(r"\W+", "_", outcome))
