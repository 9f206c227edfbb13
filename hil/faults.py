"""What can be wrong with a serial line, by name.

Each fault stands in `FAULTS` with one sentence. Those that change bytes are pure functions; time
and the plug (`late`, `babble` without end, `unplugged`) are played by `hil.line`.
"""

import difflib
from collections.abc import Callable, Mapping
from random import Random

FAULTS: Mapping[str, str] = {
    "silent": "nothing comes: a broken wire, a wrong id, no power",
    "half frame": "the first half of the frame comes, and no more",
    "flipped bit": "one bit in the frame's middle third is wrong, so that its check does not fit",
    "late": "the frame comes whole, but seconds too late (2 s unless told)",
    "babble": "random bytes without pause and nothing else, 1 kB/s: a wrong baud rate",
    "noise before": "up to 20 random bytes come before the frame",
    "echo": "the request comes back before the answer: an RS-485 adapter that hears itself",
    "unplugged": "the adapter is pulled: end of file or EIO, and its path is gone",
}
"""Every fault that a line can have, and what is then seen."""

BABBLE_BYTES = 256
"""Random bytes that a frame becomes, or that come every `BABBLE_PERIOD`."""

BABBLE_PERIOD = 0.25
"""Seconds; 256 bytes in it are about what a 9600 baud line can carry."""


def known(fault: str) -> str:
    """Return the name of a fault, "" for none. Raises ValueError with the nearest name."""
    if fault and fault not in FAULTS:
        near = difflib.get_close_matches(fault, FAULTS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FAULTS)}"
        raise ValueError(f"there is no fault {fault!r}; {hint}")
    return fault


def spoiled(fault: str, frame: bytes, request: bytes, random: Random) -> bytes:
    """Return what comes over the line in place of `frame`, the answer to `request`."""
    spoil = _SPOIL.get(known(fault))
    return spoil(frame, request, random) if spoil and frame else frame


def _flip(frame: bytes, _: bytes, random: Random) -> bytes:
    # Not at the ends, where a frame is known by its start and length, and only the lowest bit:
    # no text becomes a line's start or end, so that the outcome is the same whichever byte it is.
    at = random.randrange(len(frame) // 3, max(2 * len(frame) // 3, len(frame) // 3 + 1))
    return frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]


_SPOIL: Mapping[str, Callable[[bytes, bytes, Random], bytes]] = {
    "silent": lambda frame, request, random: b"",
    "half frame": lambda frame, request, random: frame[: len(frame) // 2],
    "flipped bit": _flip,
    "babble": lambda frame, request, random: random.randbytes(BABBLE_BYTES),
    "noise before": lambda frame, request, random: random.randbytes(random.randint(1, 20)) + frame,
    "echo": lambda frame, request, random: request + frame,
    "unplugged": lambda frame, request, random: b"",
}
