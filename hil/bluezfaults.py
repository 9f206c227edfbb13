"""What can be wrong with Bluetooth, by name.

Each fault stands in `FAULTS` with one sentence. `Faults` remembers which there are; what they do
is done where they meet: at an adapter, a device, a read.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

FAULTS: Mapping[str, str] = {
    "no adapter": "the adapter is pulled, its objects are gone; cured, it is plugged in anew",
    "powered off": "the adapter is off, its scans and connections ended; setting Powered helps",
    "blocked": "the adapter is off and stays so by rfkill: setting Powered is refused",
    "BlueZ gone": "bluetoothd was stopped: all objects are removed, then its name is free",
    "BlueZ crashed": "bluetoothd has ended without a word: no object is removed, no link ended",
    "D-Bus gone": "dbus-daemon is killed, every connection ends; cured, both are started again",
    "scan refused": "StartDiscovery is answered with InProgress",
    "scan begins late": "StartDiscovery is answered after 5.5 s, and scans from then on",
    "deaf until power cycle": "scans succeed and hear nothing until Powered was off and on",
    "deaf until BlueZ restarts": "a power cycle does not help either",
    "deaf until power cut": "a restart of BlueZ does not help either, only pulling the adapter",
    "adverts stop": "a device sends no more: nothing is heard, Connect finds nobody",
    "steady adverts suppressed": "of adverts that repeat 1 of 20 is told, as by BlueZ after 5.87,"
    " unless a scan asked for DuplicateData",
    "connect refused": "Connect is answered with Failed",
    "connect aborted": "Connect is answered with le-connection-abort-by-local: bleak tries again",
    "in progress": "Connect, ReadValue and WriteValue are answered with InProgress",
    "services never resolve": "connections are made, their services are never known",
    "vanishes mid-read": "on ReadValue the device's objects are removed; no answer, ever",
    "silent": "ReadValue and WriteValue are never answered",
    "ATT error": "ReadValue and WriteValue are answered with ATT error 0x0e, unlikely error",
    "not paired": "what BlueZ makes of ATT errors 0x05, 0x0c and 0x0f: NotPermitted, Not paired",
}
"""Every fault there can be, and what is then seen."""

DEAF = tuple(name for name in FAULTS if name.startswith("deaf until"))
"""The faults of hearing: each is cured by its own remedy, and by those of the later ones."""


@dataclass(slots=True)
class _Fault:
    name: str
    at: str
    left: int | None


class Faults:
    """The faults there are now, each everywhere or at one adapter or address."""

    def __init__(self) -> None:
        self._faults: list[_Fault] = []

    def begin(self, name: str, at: str = "", times: int | None = None) -> None:
        """Let a fault begin; it ends when cured, or when met so many `times`."""
        self.cure(known(name), at)
        self._faults.append(_Fault(name, at, times))

    def cure(self, name: str, at: str = "") -> None:
        """End a fault; at one place only what was begun there."""
        known(name)
        self._faults = [
            fault for fault in self._faults if fault.name != name or (at and fault.at != at)
        ]

    def met(self, name: str, *places: str) -> bool:
        """Say whether a fault is met at one of these places, and count it."""
        for fault in self._faults:
            if fault.name == name and (not fault.at or fault.at in places):
                if fault.left is not None:
                    fault.left -= 1
                    if not fault.left:
                        self._faults.remove(fault)
                return True
        return False


def known(fault: str) -> str:
    """Return the name of a fault. Raises ValueError with the nearest name."""
    if fault not in FAULTS:
        near = difflib.get_close_matches(fault, FAULTS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FAULTS)}"
        raise ValueError(f"there is no fault {fault!r}; {hint}")
    return fault
