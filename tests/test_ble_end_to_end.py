"""BLE through the daemon: a simulated BlueZ in, an MQTT broker out."""

from gateway_process import gateway, values
from test_end_to_end import Mosquitto, ten_line_decoder

from hil.bluezprocess import BlueZProcess
from hil.broker import Broker
from tests.radio_scene import METER, NEEDS_DBUS, TAG, on_air

pytestmark = NEEDS_DBUS

SCENE = {
    "advertiser": [
        {
            "address": TAG,
            "every": 0.1,
            "manufacturer": {"0499": "0512fc5394c37c0004fffc040cac364200cdcbb8334c884f"},
        },
    ],
    "peripheral": [
        {"address": METER, "services": {"181a": {"2a6e": "6408", "2a6f": "1027"}}, "every": 0.1}
    ],
    "crowd": {"size": 100, "every": 0.2, "rotate": 1},
}


def tag(temperature):
    """Return what a Ruuvi tag says; it counts temperature in 0.005 degrees."""
    return f"05{round(temperature / 0.005) & 0xFFFF:04x}5394c37c0004fffc040cac364200cdcbb8334c884f"


WARM = [-40.0, -0.005, 0.0, 0.005, 24.315, 84.995]
COLD = [-273.15, -0.01, 0.0, 21.48, 99.99]
CHANGING = {
    "advertiser": [
        {"address": TAG, "every": 0.3, "manufacturer": {"0499": [tag(each) for each in WARM]}}
    ],
    "peripheral": [
        {
            **{"address": METER, "every": 0.1},
            "services": {
                "181a": {
                    "2a6e": [
                        (round(each * 100) & 0xFFFF).to_bytes(2, "little").hex() for each in COLD
                    ]
                }
            },
        }
    ],
}
SENSORS = f"""
[sensors.hall]
driver = "ruuvi"
address = "{TAG}"
interval = "1s"
[sensors.attic]
driver = "environmental_sensing"
address = "{METER}"
interval = "1s"
"""


@on_air
async def test_adverts_and_a_gatt_read_reach_the_broker_to_the_last_digit(tmp_path, monkeypatch):
    async with BlueZProcess(SCENE) as bluez, Broker() as broker:
        for name, address in bluez.environment.items():
            monkeypatch.setenv(name, address)
        async with gateway(tmp_path, broker.url, SENSORS) as daemon:
            await broker.wait_for(
                lambda seen: values(seen, "hall", "humidity") and values(seen, "attic", "humidity")
            )
            assert await daemon.stop() == 0
        heard = broker.received
    assert values(heard, "hall", "temperature")[0] == 24.3
    assert values(heard, "hall", "pressure")[0] == 1000.44
    assert values(heard, "attic", "temperature")[0] == 21.48
    assert values(heard, "attic", "humidity")[0] == 100.0


@on_air
async def test_without_bluetooth_it_is_said_once_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    box = '[sensors.box]\ndriver = "simulator"\ninterval = "200ms"\n'
    async with Broker() as broker, gateway(tmp_path, broker.url, SENSORS + box) as daemon:
        await broker.wait_for(lambda seen: len(values(seen, "box", "temperature")) > 12)
        assert await daemon.stop() == 0
        rest = (await daemon.process.stderr.read()).decode()
    assert rest.count("no system bus") == 1
    assert "Traceback" not in rest


@on_air
async def test_a_real_mosquitto_has_the_values_to_the_last_digit(tmp_path, monkeypatch):
    decode = next(v for k, v in ten_line_decoder().items() if k.startswith("decode"))
    got = {"hall": set(), "attic": set()}
    async with BlueZProcess(CHANGING) as bluez, Mosquitto(tmp_path) as broker:
        for name, address in bluez.environment.items():
            monkeypatch.setenv(name, address)
        fast = SENSORS.replace('"1s"', '"150ms"')
        async with gateway(tmp_path, broker.url, fast) as daemon:
            while got != {"hall": set(WARM), "attic": set(COLD)}:
                _, topic, payload = await broker.message()
                for row in decode(payload) if "/batch/" in topic else ():
                    if "temperature" in row:
                        got[row[0]].add(row[-1])
            assert await daemon.stop() == 0
