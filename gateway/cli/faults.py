"""What `bygate replay` says of wrong usage, and of a driver's own mistakes."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.config import ConfigError, Mistake
from gateway.driver import Driver, SensorError
from gateway.judge import judge
from gateway.poller import DRIVER_ERROR
from gateway.reading import Values


class DriverError(SensorError):
    """A driver's own mistake, in words."""

    outcome = DRIVER_ERROR


def wrong(text: str) -> ConfigError:
    """Return what ends a command that was used wrongly."""
    return ConfigError("", [Mistake(None, "", text)])


@contextmanager
def mistakes_named() -> Iterator[None]:
    """Raise a driver's own mistakes as sensor errors."""
    try:
        yield
    except SensorError:
        raise
    except Exception as error:
        raise DriverError(f"{type(error).__name__}: {error}") from error


def checked(driver: Driver, values: Values | None) -> Values | None:
    """Return the values; raises what the gateway would raise at those that are none."""
    if values is None:
        return None
    for quantity, value in values.items():
        if quantity not in driver.quantities:
            raise ValueError(f"{quantity.name}: not among the driver's quantities")
        judge(quantity, value)
    return values
