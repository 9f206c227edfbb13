"""`bygate check`: every mistake in config.toml at once, or what will run."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.cli import DEFAULT_CONFIG
from gateway.cli.columns import columns, folded
from gateway.config import Config, ConfigError, PortSettings, SensorSettings, load
from gateway.driver import SerialDriver
from gateway.measure import shown_duration, shown_size
from gateway.schema import plain, settings_of

LISTED = 8
"""Quantities of a sensor that are named; `bygate drivers` and --json name all."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bygate check`."""
    parser.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--example", action="store_true", help="print a config.toml to begin with, and check none"
    )


def run(args: argparse.Namespace) -> int:
    """Print the mistakes, or what will run."""
    if args.example:
        from gateway.cli.example import example

        print(example(), end="")
        return 0
    try:
        config = load(args.config)
    except ConfigError as error:
        _print_mistakes(error, as_json=args.json)
        return 2
    print(json.dumps(_as_json(config), indent=2) if args.json else _as_text(config))
    return 0


def _print_mistakes(error: ConfigError, *, as_json: bool) -> None:
    if as_json:
        mistakes = [asdict(mistake) for mistake in error.mistakes]
        print(json.dumps({"ok": False, "mistakes": mistakes}, indent=2))
    else:
        print(error, file=sys.stderr)


def _as_text(config: Config) -> str:
    heads = ("SENSOR", "DRIVER", "LINK", "PORT OR ADDRESS", "INTERVAL", "QUANTITIES")
    sensors = (
        columns(heads, *map(_row, config.sensors.values()))
        if config.sensors
        else ("no sensors: what the buffer holds is delivered, nothing is measured")
    )
    return f"{sensors}\n\nbroker  {_broker(config)}\nbuffer  {_buffer(config)}"


def _row(sensor: SensorSettings) -> tuple[str, ...]:
    line = sensor.driver.link
    if isinstance(sensor.driver, SerialDriver) and sensor.port:
        line += f" {_line(sensor.driver, sensor.port)}"
    port = str(sensor.port.path) if sensor.port else sensor.address or "-"
    interval = shown_duration(sensor.interval) + (", durable" if sensor.durable else "")
    return (
        sensor.name,
        sensor.driver_name,
        line,
        port,
        interval,
        _first(folded(_quantities(sensor))),
    )


def _first(names: list[str]) -> str:
    more = f", … and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _line(driver: SerialDriver, port: PortSettings) -> str:
    form = f"{port.bytesize or driver.bytesize}{port.parity or driver.parity}"
    return f"{port.baudrate or driver.baudrate} {form}{port.stopbits or driver.stopbits}"


def _quantities(sensor: SensorSettings) -> list[str]:
    return [quantity.name for quantity in sensor.driver.quantities]


def _broker(config: Config) -> str:
    uplink = config.uplink
    urls = ", then ".join(broker.url for broker in uplink.url)
    login = f"login {uplink.username}" if uplink.username else "no login"
    ping = f"pinged every {shown_duration(uplink.keepalive)}"
    return f"{urls}; topics under {uplink.topic}; client {uplink.client_id}, {login}; {ping}"


def _buffer(config: Config) -> str:
    buffer = config.buffer
    rhythm = f"flushed every {shown_duration(buffer.flush_interval)}, "
    rhythm += f"sealed every {shown_duration(buffer.seal_interval)}"
    most = "the smaller of 512 MiB and half the partition"
    most = most if buffer.max_size is None else shown_size(buffer.max_size)
    free = "the smaller of 64 MiB and a tenth"
    free = free if buffer.keep_free is None else shown_size(buffer.keep_free)
    age = "" if buffer.max_age is None else f", nothing older than {shown_duration(buffer.max_age)}"
    return f"{config.gateway.state_dir}; {rhythm}; at most {most}, {free} kept free{age}"


def _as_json(config: Config) -> dict[str, Any]:
    return {
        "ok": True,
        "mistakes": [],
        "gateway": _table(config.gateway),
        "uplink": _table(config.uplink) | {"url": [broker.url for broker in config.uplink.url]},
        "buffer": _table(config.buffer),
        "bluetooth": _table(config.bluetooth),
        "sensors": [_sensor(sensor) for sensor in config.sensors.values()],
    }


def _table(settings: object) -> dict[str, Any]:
    declared = settings_of(type(settings)).values()
    return {each.name: plain(each.kind, getattr(settings, each.name)) for each in declared}


def _sensor(sensor: SensorSettings) -> dict[str, Any]:
    return {
        "name": sensor.name,
        "driver": sensor.driver_name,
        "link": sensor.driver.link,
        "port": _table(sensor.port) if sensor.port else None,
        "address": sensor.address,
        "interval": shown_duration(sensor.interval),
        "durable": sensor.durable,
        "settings": _table(sensor.driver),
        "quantities": _quantities(sensor),
    }
