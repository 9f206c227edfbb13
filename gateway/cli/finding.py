"""What `bygate doctor` finds, a line each."""

from collections.abc import Callable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
_BY_GRAVITY = (OK, WARN, FAIL)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    check: str
    state: str
    """OK, WARN or FAIL."""
    seen: str
    """In numbers."""
    remedy: str | None = None
    """The cause, and what mends it; None where nothing is wrong."""
    broker: str | None = None
    """The address of the broker that it is of; None: it is of this box."""

    def __str__(self) -> str:
        """Return it as a line."""
        told = f"{self.seen}: {self.remedy}" if self.remedy else self.seen
        return f"{self.check:<11}  {self.state:<4}  {' '.join(told.split())}"


Report = Callable[[Finding], None]
"""Told of each finding as soon as there is one."""


class Told:
    """Reports what one broker comes to."""

    def __init__(self, report: Report, broker: str) -> None:
        self._report, self._broker = report, broker

    def ok(self, check: str, seen: str) -> None:
        """Report that nothing is wrong."""
        self._report(Finding(check, OK, seen, None, self._broker))

    def warn(self, check: str, seen: str, remedy: str) -> None:
        """Report what delivers, and should be seen to."""
        self._report(Finding(check, WARN, seen, remedy, self._broker))

    def fail(self, check: str, seen: str, remedy: str) -> None:
        """Report what keeps it from delivering."""
        self._report(Finding(check, FAIL, seen, remedy, self._broker))


def worst(findings: list[Finding]) -> str:
    """Return the gravest state among them."""
    return max((each.state for each in findings), key=_BY_GRAVITY.index, default=OK)
