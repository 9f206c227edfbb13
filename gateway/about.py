"""What a gateway is: where it hangs, why, who answers for it, what it measures: its `about`."""

import json

from gateway import __version__
from gateway.config import Config
from gateway.settings import SensorSettings


def about(config: Config) -> bytes:
    """Return it as JSON; what the configuration does not say is null."""
    site = config.site
    document = {
        "gateway": config.gateway.id,
        "version": __version__,
        "site": {
            "name": site.name,
            "location": site.location,
            "purpose": site.purpose,
            "contact": site.contact,
        },
        "sensors": {name: _of_sensor(sensor) for name, sensor in config.sensors.items()},
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _of_sensor(sensor: SensorSettings) -> dict[str, object]:
    driver = sensor.driver
    return {
        "driver": sensor.driver_name,
        "model": driver.model,
        "interval_s": sensor.interval,
        "quantities": {quantity.name: {"unit": quantity.unit} for quantity in driver.quantities},
    }
