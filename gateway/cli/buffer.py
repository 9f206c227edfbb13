"""`bygate buffer`: what waits on disk, while the daemon runs and without it."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gateway import acked
from gateway.aside import on_disk
from gateway.bounds import room
from gateway.cause import FULL, cause
from gateway.cli import DEFAULT_CONFIG
from gateway.cli.columns import columns
from gateway.config import BufferSettings, load_buffer
from gateway.disk import VOLATILE, remedy, volatile
from gateway.glance import Glance, MadeWay, NoBuffer, Refused
from gateway.health import utc
from gateway.measure import counted
from gateway.rates import noted
from gateway.reasons import PUBACK
from gateway.refused import DIRECTORY, RETRY

RETRY_HINT = (
    "mend the broker, then sudo bygate buffer --retry-refused; to give one up, remove its file "
    f"from {DIRECTORY}/: its readings count as dropped"
)

DMESG = "look for errors of the disk in dmesg"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate buffer`."""
    parser.add_argument(
        *("-c", "--config"),
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="of which [gateway] and [buffer] count, whatever else stands there",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--retry-refused",
        action="store_true",
        help="have the refused batches offered again: by the daemon at once, or at its next start",
    )


def run(args: argparse.Namespace) -> int:
    """Print what lies there; 1 where that is something to be seen to, or cannot be read."""
    gateway, settings = load_buffer(args.config)
    directory = gateway.state_dir
    try:
        with reading(directory):
            glance = Glance(directory, gateway.id)
            if args.retry_refused:
                return _retry(glance, directory / DIRECTORY / RETRY, as_json=args.json)
            told = look(settings, glance)
    except NoBuffer as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(told, indent=2) if args.json else "\n".join(_as_text(told)))
    return int(bool(told["damage"] or told["set_aside"] or told["refused"]))


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Raise NoBuffer, with what was seen and what mends it, where the disk does not allow it."""
    try:
        yield
    except OSError as error:
        mend = DMESG
        if isinstance(error, PermissionError):
            mend = "only root and the user that bygate runs as may look: give the command by sudo"
        elif error.errno in (errno.EROFS, *FULL):  # to have refused batches offered again
            _, mend = cause(error, directory)
        where = error.filename or directory
        raise NoBuffer(f"{where}: {error.strerror}: {mend}") from error


def _retry(glance: Glance, asks: Path, *, as_json: bool) -> int:
    count = sum(1 for _ in glance.refused())
    if count:
        _ask(asks)
    told = "no refused batches: nothing to offer again"
    if count:
        told = (
            f"refused batches: {count}, offered again by the daemon within seconds, or at its next "
            "start; `bygate buffer` shows what becomes of them"
        )
    print(json.dumps({"offered_again": count}) if as_json else told)
    return 0


def _ask(asks: Path) -> None:
    with suppress(FileExistsError):
        asks.touch(exist_ok=False)
    if os.path.lexists(asks) and not asks.is_file():
        raise NoBuffer(f"{asks}: not a file, and so asks for nothing: move it away")


def look(settings: BufferSettings, glance: Glance) -> dict[str, Any]:
    """Return what the status says of the buffer under the same names, and more."""
    batches, readings = glance.spool.held()
    unsealed = sum(len(batch.readings) for batch in glance.unsealed())
    refused = [_refused(each) for each in glance.refused()]
    size = glance.spool.size + sum(on_disk(each["bytes"]) for each in refused)
    left, rates = max(room(glance.disk, settings, size), 0), noted(glance.disk)
    oldest, directory = glance.oldest_ms, glance.disk.directory
    return {
        "directory": str(directory),
        "volatile": volatile(directory),
        "waiting_batches": batches,
        "waiting_readings": readings + unsealed,
        "unsealed_readings": unsealed,
        "oldest_waiting": None if oldest is None else utc(oldest),
        "dropped": glance.spool.dropped,
        "bytes": size,
        "room_bytes": left,
        "room_days": None if rates is None else rates.room_days(left),
        "written_bytes_day": None if rates is None else rates.written_day,
        "damage": list(_damage(glance)),
        "set_aside": [f"{each.name}: {_set_aside(each)}" for each in glance.made_way],
        "refused": refused,
    }


def _damage(glance: Glance) -> Iterator[str]:
    for damage in glance.damage:
        if not damage.data:
            yield (
                f"{damage.name or 'the first segment'}: {damage.cost} readings missing at byte "
                f"{damage.at}: cut off or removed, counted at the daemon's next start"
            )
            continue
        how, mend = ("cannot be read", f"; {DMESG}") if damage.unreadable else ("damaged", "")
        yield (
            f"{damage.name}: {counted(len(damage.data), 'byte')} from {damage.at} on {how}, "
            f"{damage.cost} readings in them: set aside at the daemon's next start{mend}"
        )
    if glance.spool.acked_unreadable:
        yield f"{acked.NAME}: cannot be read: some of what waits may be delivered already: {DMESG}"
    for name, error in glance.broken.items():
        yield f"{remedy(error, glance.disk.directory / name)}: what is in it is not shown"
    for name in glance.foreign:
        yield f"{name}: none of bygate's, so that what was in it is not shown: move it away"
    for name in glance.aside:
        yield f"{name}: damaged bytes, set aside: look for disk errors in dmesg, then move it away"


def _set_aside(each: MadeWay) -> str:
    if each.of_another_version:
        return (
            "of another version of bygate, set aside whole, so that nothing of it is lost: to have "
            f"it delivered, move it to a state_dir of its own as {each.ours}, and run that version"
        )
    return f"none of bygate's, set aside whole as it stood in place of {each.ours}: move it away"


def _refused(each: Refused) -> dict[str, Any]:
    batch = each.batch
    return {
        "name": each.aside.name,
        "reason": f"0x{each.aside.reason:02x}",
        "means": PUBACK.get(each.aside.reason, "not known"),
        "readings": None if batch is None else len(batch.readings),
        "bytes": len(each.payload),
        "since": utc(each.since * 1000),
        "offered_again": each.aside.again,
    }


def _as_text(told: dict[str, Any]) -> Iterator[str]:
    where = f" is on {told['volatile']}, which {VOLATILE}" if told["volatile"] else ""
    yield f"buffer    {told['directory']}{where}"
    since = f", the oldest of {told['oldest_waiting']}" if told["oldest_waiting"] else ""
    batches = (
        f"{counted(told['waiting_batches'], 'batch')}, {told['unsealed_readings']} in none yet"
    )
    yield f"waiting   {counted(told['waiting_readings'], 'reading')}: {batches}{since}"
    days, daily = told["room_days"], told["written_bytes_day"]
    unknown = "not known before the daemon has run for 10 minutes"
    left = f"days {unknown}" if days is None else f"{days:g} days at the rate of the last day"
    yield f"room      {_size(told['room_bytes'])}, {left}"
    yield f"writes    {unknown if daily is None else f'{_size(daily)} a day'}"
    yield f"dropped   {counted(told['dropped'], 'reading')} since the buffer was created"
    for damage in told["damage"]:
        yield f"damage    {damage}"
    for aside in told["set_aside"]:
        yield f"aside     {aside}"
    if told["refused"]:
        heads = ("REFUSED", "REASON", "READINGS", "BYTES", "SINCE", "STATE")
        yield f"\n{columns(heads, *map(_row, told['refused']))}"
        if not all(each["offered_again"] for each in told["refused"]):
            yield f"\n{RETRY_HINT}"


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    readings = "damaged" if each["readings"] is None else str(each["readings"])
    reason = f"{each['reason']} {each['means']}"
    state = "offered again" if each["offered_again"] else "aside"
    return each["name"], reason, readings, str(each["bytes"]), each["since"], state


def _size(count: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"
