"""What is known of the uplink, over all of its sessions."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from gateway.certificate import Outlook
from gateway.ration import Ration
from gateway.retained import Told
from gateway.suspects import Batch, Suspects
from gateway.traffic import Traffic


@dataclass(slots=True)
class UplinkState:
    """What is known of the uplink, for the status and over all sessions."""

    broker: str = ""
    connected: bool = False
    why: str | None = None
    """Why it delivers nothing; None since a batch was delivered, or none waited or was refused."""
    lost: int = 0
    """How often it ceased to deliver since the start."""
    last_ack_ms: int | None = None
    """Unix ms."""
    unheard: int = 0
    """Batches that the broker took although nobody subscribes to them."""
    unsaved: set[Batch] = field(default_factory=set)
    """What was acknowledged just before a connection was lost, and is sent again."""
    refused_in_a_row: int = 0
    """Batches that were refused for what they are since the broker accepted one."""
    accepted_at: float = -math.inf
    """The loop's time when the latest was sent that it accepted."""
    pace: float | None = None
    """Seconds that a batch takes now, when many are under way; None until one is acknowledged."""
    gap: float = 0.0
    """Seconds from one batch of the backlog to the next, at least."""
    backlog_due: float = 0.0
    """The loop's time from which on the backlog may go on."""
    changes: Ration = field(default_factory=Ration)
    """How often the status is published because it changed."""
    traffic: Traffic = field(default_factory=Traffic)
    patience: float = 1.0
    """How much longer a PUBACK is waited for: doubles when none comes, until one is in time."""
    suspects: Suspects = field(default_factory=Suspects)
    outlook: Outlook = field(default_factory=Outlook)
    """What our certificate's dates and the clock let expect of TLS."""
    told: defaultdict[str, Told] = field(default_factory=lambda: defaultdict(Told))
    """What became of about and status at each broker, by its URL."""

    def catch_up(self, batches: int) -> float | None:
        """Return how many seconds so many batches take now; None while that cannot be told.

        Suspects are not among them: nobody knows when they go.
        """
        batches = max(batches - len(self.suspects), 0)
        if not batches:
            return 0.0
        return None if self.pace is None else batches * max(self.pace, self.gap)
