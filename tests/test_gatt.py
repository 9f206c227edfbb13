"""Connections to BLE devices against a simulated BlueZ: every fault by name ends in one outcome."""

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import chain, repeat

import pytest
from bleak.backends.bluezdbus.version import BlueZFeatures

from gateway import gatt
from gateway.clock import Clock
from gateway.driver import GattClient, GattDriver, NoReply
from gateway.gatt import GattDevice
from gateway.poller import GattPoller
from gateway.reading import HUMIDITY, TEMPERATURE, Values
from hil.bluezstack import refused
from hil.dbusobjects import Refused
from hil.radio import Characteristic
from tests.radio_scene import METER, NEEDS_DBUS, on_air, resources, scene, until

pytestmark = NEEDS_DBUS

SERVICES = {"181a": {"2a6e": b"\xd0\x07", "2a6f": b"\x88\x13"}}
READABLE = {"181a": {"2a6e": Characteristic(b"\xd0\x07", flags=("read", "write"))}}


class Thermometer(GattDriver):
    model = "a thermometer"
    quantities = (TEMPERATURE, HUMIDITY)
    characteristics = ("2a6e", "2A6F")

    def decode(self, values):
        return {
            TEMPERATURE: int.from_bytes(values["2a6e"], "little") / 100,
            HUMIDITY: int.from_bytes(values["2A6F"], "little") / 100,
        }


class Asked(Thermometer):
    async def poll(self, client: GattClient) -> Values:
        said = await client.request("2a6e", b"?", "2a6f")
        return {TEMPERATURE: int.from_bytes(said, "little") / 100}


def telling():
    """Return a driver that tells when it begins to read."""

    class Tells(Thermometer):
        reading = asyncio.Event()

        async def poll(self, client):
            self.reading.set()
            return await super().poll(client)

    return Tells()


@pytest.fixture(autouse=True)
def private(monkeypatch):
    monkeypatch.setattr(BlueZFeatures, "checked_bluez_version", True)
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)


def poller_of(address, radio, interval, driver=None):
    return GattPoller(
        name=address,
        driver=driver or Thermometer(),
        interval=interval,
        clock=Clock(),
        sink=lambda reading: None,
        port=GattDevice(address, radio),
    )


@asynccontextmanager
async def polled(driver=None, services=SERVICES, interval=0.3):
    """Give a simulated BlueZ and a poller that reads the one device in the air."""
    async with scene() as (bluez, radio):
        meter = bluez.peripheral(METER, services, every=0.05)
        poller = poller_of(METER, radio, interval, driver)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(poller.run())
            yield bluez, poller, meter
            running.cancel()


@asynccontextmanager
async def connected():
    """Give a simulated BlueZ and a connection to the one device in the air."""
    async with scene() as (bluez, radio):
        bluez.peripheral(METER, READABLE, every=0.05)
        async with GattDevice(METER, radio).connected(60) as client:
            yield bluez, client


async def counted(poller, outcome, more=1):
    """Return the seconds until an outcome has been counted so many times more."""
    began, target = time.monotonic(), poller.state.outcomes[outcome] + more
    await until(lambda: poller.state.outcomes[outcome] >= target)
    return time.monotonic() - began


@on_air
async def test_a_device_is_connected_to_read_and_let_go_of():
    async with polled() as (bluez, poller, _):
        await counted(poller, "ok")
        values = {q.name: r.value for q, r in poller.state.last.items()}
        assert values == {"temperature": 20.0, "humidity": 50.0}
        await counted(poller, "ok")
        await until(lambda: not bluez.adapters["hci0"].devices[METER].shown["Connected"])


@on_air
async def test_a_device_that_has_not_all_characteristics_gives_those_it_has():
    class Part(Thermometer):
        def decode(self, values):
            return {TEMPERATURE: len(values)}

    async with polled(Part(), {"181a": {"2a6e": b"\xd0\x07"}}) as (_, poller, _):
        await counted(poller, "ok")
        assert poller.state.last[TEMPERATURE].value == 1


@on_air
async def test_of_characteristics_with_one_uuid_the_first_is_read():
    twins = {
        "181a": {"2a6e": b"\xd0\x07", "2a6f": b"\x88\x13"},
        "181b": {"2a6e": b"\xd1\x07"},
    }
    async with polled(services=twins) as (_, poller, _):
        await counted(poller, "ok")
        assert poller.state.last[TEMPERATURE].value == 20.0


@on_air
async def test_of_twins_the_first_is_written_and_notifies():
    answer = Characteristic(b"", flags=("notify",))
    ask = Characteristic(b"", flags=("write",), on_write=lambda data: answer.notify(b"\xd0\x07"))
    idle = {"2a6e": Characteristic(b"", flags=("write",)), "2a6f": Characteristic(b"")}
    twins = {"181a": {"2a6e": ask, "2a6f": answer}, "181b": idle}
    async with polled(Asked(), twins) as (_, poller, _):
        await counted(poller, "ok")


@on_air
async def test_a_device_without_what_its_driver_asks_is_refused_with_the_name():
    async with polled(Asked(), {"181a": {"2a19": b"\x64"}}) as (_, poller, _):
        await counted(poller, "refused")
        assert poller.state.why == "the device has no characteristic 2a6f"


@on_air
async def test_a_device_that_has_none_of_them_is_refused_with_their_names():
    async with polled(services={"181a": {"2a19": b"\x64"}}) as (_, poller, _):
        await counted(poller, "refused")
        assert poller.state.why == "the device has none of 2a6e, 2A6F"


@on_air
async def test_what_answers_a_request_is_what_is_notified():
    answer = Characteristic(b"", flags=("notify",))
    ask = Characteristic(b"", flags=("write",), on_write=lambda data: answer.notify(b"\xd0\x07"))
    async with polled(Asked(), {"181a": {"2a6e": ask, "2a6f": answer}}) as (_, poller, _):
        await counted(poller, "ok", 2)
        assert poller.state.last[TEMPERATURE].value == 20.0


FAULTS = {
    "connect refused": ("refused", "not connected"),
    "in progress": ("refused", "InProgress"),
    "adverts stop": ("no reply", "not heard within"),
    "services never resolve": ("no reply", "not connected within"),
    "vanishes mid-read": ("no reply", "BlueZ has forgotten it"),
    "silent": ("no reply", "not read within"),
    "ATT error": ("refused", "it answers GATT Protocol Error: Unlikely Error"),
    "not paired": ("refused", "bluetoothctl pair"),
}


@pytest.mark.parametrize("name", FAULTS)
@on_air
async def test_a_fault_has_its_outcome_and_values_come_again_when_it_is_cured(name, monkeypatch):
    monkeypatch.setattr(gatt, "HEARING", (0.5, 0.5))
    monkeypatch.setattr(gatt, "SHORTEST", 0.3)
    outcome, why = FAULTS[name]
    async with polled() as (bluez, poller, _):
        await counted(poller, "ok")
        async with bluez.fault(name):
            await counted(poller, outcome)
            assert why in poller.state.why
        assert await counted(poller, "ok") < 4


def unlikely(code):
    """Return a service whose one value is answered with an ATT error."""

    def refuse():
        raise refused("Failed", f"Operation failed with ATT error: 0x{code:02x}")

    return {"181a": {"2a6e": refuse}}


@pytest.mark.parametrize("code", [0x05, 0x08, 0x0C, 0x0F])
@on_air
async def test_a_device_that_wants_to_be_paired_with_says_so(code):
    async with polled(services=unlikely(code)) as (_, poller, _):
        await counted(poller, "refused")
        assert "Insufficient" in poller.state.why
        assert poller.state.why.endswith(gatt.PAIR)


@pytest.mark.parametrize("code", [0x02, 0x0A, 0x0E, 0x80])
@on_air
async def test_pairing_is_no_remedy_for_other_errors(code):
    async with polled(services=unlikely(code)) as (_, poller, _):
        await counted(poller, "refused")
        assert poller.state.why.endswith(gatt.UNFIT)


@on_air
async def test_what_bluez_says_is_told_in_a_line_that_can_be_printed():
    def refuse():
        raise refused("Failed", "\x1b[31m evil\n\n" + "y" * 5000)

    async with polled(services={"181a": {"2a6e": refuse}}) as (_, poller, _):
        await counted(poller, "refused")
        assert poller.state.why.isprintable()
        assert "evil" in poller.state.why
        assert poller.state.why.endswith("is it connected to a phone?")


@on_air
async def test_a_device_with_nothing_that_its_driver_reads_is_no_reply():
    class Other(Thermometer):
        def decode(self, values):
            return None

    async with polled(Other()) as (_, poller, _):
        await counted(poller, "no reply")
        assert poller.state.why.startswith("it answers, but with nothing that its driver reads")
        assert poller.state.outcomes["ok"] == 0


@on_air
async def test_a_device_that_bluez_forgets_is_not_waited_for_till_the_deadline():
    async with polled(interval=60) as (bluez, poller, _):
        await bluez.begin("vanishes mid-read", times=1)
        assert await counted(poller, "no reply") < 1
        assert "BlueZ has forgotten it" in poller.state.why


@on_air
async def test_a_call_of_a_device_that_bluez_has_forgotten_is_not_waited_for_either():
    async with connected() as (bluez, client):
        await bluez.begin("silent")
        client.lost()
        began = time.monotonic()
        with pytest.raises(NoReply, match="BlueZ has forgotten it"):
            await client.read("2a6e")
        assert time.monotonic() - began < 0.5


@on_air
async def test_a_loss_that_is_told_again_while_the_call_ends_changes_nothing():
    async with connected() as (bluez, client), bluez.fault("silent"):
        reading = asyncio.create_task(client.read("2a6e"))
        while not reading.done():
            await asyncio.sleep(0)
            client.lost()
        assert isinstance(reading.exception(), NoReply)


@on_air
async def test_a_connection_that_bleak_makes_at_its_second_try_is_not_taken_for_lost():
    async with polled(interval=60) as (bluez, poller, _):
        await bluez.begin("connect aborted", times=1)
        await until(lambda: poller.state.outcomes)
        assert poller.state.outcomes == {"ok": 1}


@pytest.mark.parametrize("call", ["read", "write"])
@on_air
async def test_what_bluez_answers_with_in_progress_ends_with_the_calls_deadline(call, monkeypatch):
    monkeypatch.setattr(gatt, "CALL", 0.3)
    async with connected() as (bluez, client):
        data = [b"?"] if call == "write" else []
        async with bluez.fault("in progress"), asyncio.timeout(2):
            with pytest.raises(NoReply, match=r"not read within 0\.3 s"):
                await getattr(client, call)("2a6e", *data)
        assert await client.read("2a6e") == b"\xd0\x07"


@pytest.mark.parametrize(("times", "outcome"), [(3, "ok"), (4, "refused")])
@on_air
async def test_a_device_is_tried_four_times_a_turn(times, outcome):
    async with polled(interval=60) as (bluez, poller, _):
        await bluez.begin("connect refused", times=times)
        await counted(poller, outcome)
        assert poller.state.outcomes == {outcome: 1}


@on_air
async def test_one_is_connected_to_at_a_time_and_three_are_connected_at_most():
    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        meters = [
            bluez.peripheral(f"C0:00:00:00:00:{n:02}", SERVICES, every=0.05) for n in range(5)
        ]
        for meter in meters:
            meter.resolve_after = 0.1
        pollers = [poller_of(meter.address, radio, 1.5, Lingers()) for meter in meters]
        running = [tasks.create_task(poller.run()) for poller in pollers]
        seen = set()

        def all_read_twice():
            seen.add(connections(bluez))
            return all(poller.state.outcomes["ok"] >= 2 for poller in pollers)

        await until(all_read_twice)
        for each in running:
            each.cancel()
    assert max(connecting for connecting, _ in seen) == 1
    assert max(connected for _, connected in seen) == 3


class Lingers(Thermometer):
    """Takes longer to read than three others take to connect to."""

    async def poll(self, client):
        await asyncio.sleep(0.8)
        return await super().poll(client)


def connections(bluez):
    """Return how many devices are being connected to, and how many are or have been."""
    shown = [device.shown for device in bluez.adapters["hci0"].devices.values()]
    connected = [each["ServicesResolved"] for each in shown if each["Connected"]]
    return connected.count(False), len(connected)


@on_air
async def test_a_device_that_hangs_up_is_not_waited_for_till_the_deadline():
    driver = telling()
    async with polled(driver, interval=60) as (bluez, poller, meter):
        async with bluez.fault("silent"):
            await driver.reading.wait()
            meter.hang_up()
            assert await counted(poller, "no reply") < 1
        assert "it has hung up" in poller.state.why


@pytest.mark.parametrize("name", ["BlueZ gone", "BlueZ crashed", "no adapter", "powered off"])
@on_air
async def test_a_read_that_the_adapter_broke_off_is_made_up_for_long_before_the_next(name):
    driver = telling()
    async with polled(driver, interval=60) as (bluez, poller, _):
        async with bluez.fault("silent"):
            await driver.reading.wait()
            async with bluez.fault(name):
                pass
        assert await counted(poller, "ok") < 2
        assert poller.state.outcomes == {"no adapter": 1, "ok": 1}
        assert poller.state.why is None


@on_air
async def test_what_bleak_makes_of_a_malformed_object_is_no_error_of_the_driver():
    async with polled() as (bluez, poller, _):
        await counted(poller, "ok")
        service = f"{bluez.adapters['hci0'].devices[METER].path}/service0001"
        nameless = {"org.bluez.GattCharacteristic1": {"Service": service}}
        bluez._objects.add(f"{service}/char0099", nameless, {})
        await counted(poller, "no reply")
        wrong = "heard, but not connected: BlueZ or bleak went wrong (KeyError)"
        assert poller.state.why == f"{wrong}: sudo systemctl restart bluetooth"


@on_air
async def test_what_a_driver_writes_in_the_wrong_type_is_its_own_error():
    class Writes(Thermometer):
        async def poll(self, client):
            await client.write("2a6e", "text")

    async with polled(Writes(), READABLE) as (_, poller, _):
        await counted(poller, "driver error")


@pytest.mark.parametrize("error", gatt.GONE)
@on_air
async def test_the_end_of_bluez_is_not_told_as_the_sensors_fault(error):
    def refuse():
        raise Refused(error, "The name org.bluez was not provided by any .service files")

    async with polled(services={"181a": {"2a6e": refuse}}, interval=60) as (_, poller, _):
        await counted(poller, "no adapter")
        assert "BlueZ does not run" in poller.state.why


@on_air
async def test_what_fails_while_the_adapter_does_not_scan_is_not_the_sensors_fault():
    def refuse():
        meter.stop()
        radio.reached_by(METER)[0]._trouble.begins("hci0 is off")
        raise refused("Failed", "Not connected")

    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        meter = bluez.peripheral(METER, {"181a": {"2a6e": refuse}}, every=0.05)
        poller = poller_of(METER, radio, 60)
        running = tasks.create_task(poller.run())
        await counted(poller, "no adapter")
        running.cancel()
    assert poller.state.why == "hci0 is off"


@pytest.mark.parametrize("name", ["vanishes mid-read", "connect refused", "silent"])
@on_air
async def test_a_fault_thirty_times_leaves_no_descriptor_and_no_task(name, monkeypatch):
    monkeypatch.setattr(gatt, "CALL", 0.05)
    monkeypatch.setattr(gatt, "NEWS", 0.02)
    async with polled(interval=0.1) as (bluez, poller, _):
        await counted(poller, "ok", 2)
        before = resources()
        async with bluez.fault(name):
            await counted(poller, FAULTS[name][0], 30)
        await counted(poller, "ok", 2)
        after = resources()
    assert after[0] <= before[0] + 3  # the connection of a read that goes on
    assert after[1] <= before[1] + 3


@on_air
async def test_what_took_time_in_vain_is_not_tried_again_in_the_same_turn(monkeypatch):
    monkeypatch.setattr(gatt, "CONNECT", 0.5)
    monkeypatch.setattr(gatt, "IN_VAIN", 0.4)
    async with polled(interval=60) as (bluez, poller, _):
        await bluez.begin("services never resolve", times=1)
        assert await counted(poller, "no reply") < 2
        assert poller.state.outcomes == {"no reply": 1}


@asynccontextmanager
async def beside(ill, fault, interval, of_ill=None):
    """Give a simulated BlueZ and a poller that reads a healthy device beside ill ones."""
    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        addresses = [f"C0:00:00:00:01:{n:02}" for n in range(ill)]
        for address in (METER, *addresses):
            bluez.peripheral(address, SERVICES, every=0.05)
        healthy = poller_of(METER, radio, interval)
        others = [poller_of(each, radio, of_ill or interval) for each in addresses]
        running = [tasks.create_task(healthy.run())]
        await counted(healthy, "ok")
        for address in addresses:
            await bluez.begin(fault, at=address)
        running += [tasks.create_task(poller.run()) for poller in others]
        yield bluez, healthy, others
        for each in running:
            each.cancel()


@on_air
async def test_one_error_of_a_healthy_device_costs_one_turn_beside_one_that_is_silent():
    async with beside(1, "silent", 0.5, of_ill=60) as (bluez, healthy, (ill,)):
        await bluez.begin("ATT error", at=METER, times=1)
        await counted(healthy, "refused")
        assert await counted(healthy, "ok") < 1
        assert not ill.state.outcomes


@on_air
async def test_turns_left_to_those_that_wait_are_counted_as_the_last():
    async with beside(1, "services never resolve", 0.3) as (_, healthy, (ill,)):
        await counted(ill, "no reply", 5)
        assert "not connected within" in ill.state.why
        assert ill.state.why.endswith("others wait: it is tried again after 8 s")
        assert await counted(healthy, "ok", 5) < 3


@on_air
async def test_one_that_recovers_ends_the_wait_of_the_others(monkeypatch):
    pauses = chain([3], repeat(60))
    monkeypatch.setattr(gatt, "pause", lambda doubt: next(pauses))
    monkeypatch.setattr(gatt, "MOST_DOUBT", 3)
    async with beside(2, "services never resolve", 0.3) as (bluez, _, ill):
        await until(lambda: all("others wait" in (each.state.why or "") for each in ill))
        await bluez.cure("services never resolve")
        await until(lambda: all(each.state.outcomes["ok"] for each in ill))


@pytest.mark.parametrize("lasts", [0, 1])
@on_air
async def test_a_new_scan_ends_the_wait_of_those_that_step_back(lasts, monkeypatch):
    monkeypatch.setattr(gatt, "HEARING", (0.5, 0.5))
    async with beside(1, "services never resolve", 0.3) as (bluez, _, (ill,)):
        await until(lambda: "others wait" in (ill.state.why or ""))
        await bluez.cure("services never resolve")
        async with bluez.fault("powered off"):
            assert not lasts or await counted(ill, "no adapter") < 2
        assert await counted(ill, "ok") < 3


@on_air
async def test_healthy_devices_miss_no_turn_among_ill_ones():
    async with scene() as (bluez, radio), asyncio.TaskGroup() as tasks:
        ill = [f"C0:00:00:00:01:{n:02}" for n in range(5)]
        healthy = [f"C0:00:00:00:02:{n:02}" for n in range(3)]
        for address in (*ill, *healthy):
            bluez.peripheral(address, SERVICES, every=0.05)
        for address in ill:
            await bluez.begin("services never resolve", at=address)
        pollers = [poller_of(address, radio, 1.5) for address in (*ill, *healthy)]
        running = [tasks.create_task(poller.run()) for poller in pollers[:5]]
        await until(lambda: all(p.state.outcomes["no reply"] for p in pollers[:5]))
        running += [tasks.create_task(poller.run()) for poller in pollers[5:]]
        await until(lambda: all(p.state.outcomes["ok"] >= 3 for p in pollers[5:]))
        for each in running:
            each.cancel()
    outcomes = [dict(poller.state.outcomes) for poller in pollers]
    assert outcomes[5:] == [{"ok": counts["ok"]} for counts in outcomes[5:]]
    assert not any("ok" in counts for counts in outcomes[:5])
