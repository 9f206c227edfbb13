"""A payload: one msgpack map, bare or as its zlib stream; safe to open whoever sent it."""

import re
import reprlib
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgpack

MAX_SIZE = 120_000
"""Bytes of the largest payload `encode` returns: AWS IoT takes 128 kB."""

MAX_INFLATED = 4 * 1024 * 1024
"""Bytes of the largest map, inflated."""

FIRST = re.compile(rb"[\x78\x80-\x8F\xDE\xDF]")
"""What the first byte of a payload can be: that of a zlib stream, or of a map."""

_CHUNK = 64 * 1024
_ZLIB = 0x78


class WireError(Exception):
    """Bytes that are no batch, or a batch that cannot be bytes; the message says what was seen."""


class CutOff(WireError):
    """The beginning of a payload; more bytes may make it whole."""


def content_type(payload: bytes) -> str:
    """Return the MQTT 5 content type of a payload, by its first byte; raise WireError."""
    return "application/zlib" if _is_zlib(payload) else "application/msgpack"


def pack(fields: Mapping[str, object]) -> bytes:
    """Return the map or its zlib stream, whichever is shorter, at most MAX_SIZE bytes.

    Raises WireError when it is longer, or when something in it fits no msgpack type.
    """
    try:
        plain = msgpack.packb(fields)
    except (ValueError, OverflowError, TypeError) as error:
        raise WireError(f"cannot be packed: {error}") from error
    payload = min(plain, zlib.compress(plain, 6), key=len)
    if len(payload) > MAX_SIZE or len(plain) > MAX_INFLATED:
        raise WireError(
            f"a payload of {len(payload)} bytes, {len(plain)} inflated: "
            f"at most {MAX_SIZE} and {MAX_INFLATED}"
        )
    return payload


def unpack(data: memoryview) -> tuple[dict[str, Any], int]:
    """Return the map that `data` begins with, and how many bytes of `data` it took.

    Any bytes give a map or a WireError: CutOff when more bytes might make them one. The worst, a
    map of nothing but empty lists, takes 300 MB and 2.5 s on its way to a WireError.
    """
    plain, used = _open(data)
    try:
        fields = msgpack.unpackb(plain, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise WireError(f"broken msgpack: {error}") from error
    if not isinstance(fields, dict):
        raise WireError(f"{seen(fields)} where a map belongs")
    return fields, used


def seen(value: object) -> str:
    """Return a value as a message shows it, shortened."""
    return reprlib.repr(value)


def _is_zlib(data: bytes | memoryview) -> bool:
    first = data[0] if len(data) else None
    if first == _ZLIB:
        return True
    if FIRST.match(data):
        return False
    found = "no bytes" if first is None else f"first byte 0x{first:02x}"
    found += " (a newline: mosquitto_sub without -N?)" if first == 0x0A else ""
    raise WireError(f"{found}: neither a msgpack map nor a zlib stream")


def _open(data: memoryview) -> tuple[bytes, int]:
    """Return the packed map that `data` begins with, and how many bytes of `data` it took."""
    if not _is_zlib(data):
        length = _map_length(data)
        return bytes(data[:length]), length
    plain, used = _inflate(data)
    try:
        length = _map_length(memoryview(plain))
    except CutOff as error:  # for good: its stream is whole
        raise WireError(f"{error}, all of its zlib stream") from error
    if length < len(plain):
        raise WireError(f"{len(plain) - length} bytes follow the map in its zlib stream")
    return plain, used


def _inflate(data: memoryview) -> tuple[bytes, int]:
    stream = zlib.decompressobj()
    plain = bytearray()
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        try:
            plain += stream.decompress(chunk, MAX_INFLATED + 1 - len(plain))
        except zlib.error as error:
            raise WireError(f"broken zlib stream: {error}") from error
        if len(plain) > MAX_INFLATED:
            raise WireError(f"a zlib stream inflates to more than {MAX_INFLATED} bytes")
        if stream.eof:
            return bytes(plain), start + len(chunk) - len(stream.unused_data)
    raise CutOff(f"a zlib stream is cut off after {len(data)} bytes")


def _map_length(data: memoryview) -> int:
    """Return the length of the msgpack object at the head of `data`, which may be cut off.

    Raises WireError when it is cut off: a list of 2^32 that a few bytes announce would otherwise be
    allocated before the rest of it is missed.
    """
    scan = msgpack.Unpacker()
    size = min(len(data), MAX_INFLATED)
    for start in range(0, size, _CHUNK):
        scan.feed(data[start : min(start + _CHUNK, size)])
        try:
            with suppress(msgpack.OutOfData):
                scan.skip()
                return scan.tell()
        except (ValueError, RecursionError) as error:  # reserved byte; nested too deep
            raise WireError(f"broken msgpack: {type(error).__name__} {error}".rstrip()) from error
    raise CutOff(f"a map is cut off after {size} bytes")


def _without_doubles(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise WireError("a key stands twice in one map")
    return fields
