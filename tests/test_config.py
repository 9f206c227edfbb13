import os
import random
import re
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outside_drivers import install

from gateway import driver
from gateway.config import Broker, Config, ConfigError, PortSettings, load, settings_from_text
from gateway.measure import counted, shown_duration, shown_size
from gateway.schema import settings_of
from gateway.settings import UplinkSettings
from gateway.toml_lines import key_lines, line_of

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
BASE = '[gateway]\nid = "g"\n[uplink]\nurl = "mqtt://h"\n'
BUOY = BASE + '[sensors.a]\ndriver = "buoy"\nport = "/dev/x"\n'


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory):
    site = tmp_path_factory.mktemp("site")
    missing = {"sds011", "pms5003", "nmea0183", "host"}.difference(driver.names())
    install(site, *missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


def read(text: str | bytes) -> Config:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
        file.flush()
        return load(file.name)


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.mistakes)
    return [re.sub(r"^.*?\.toml:( )?", "", line) for line in lines]


def mistake(text: str | bytes) -> str:
    (only,) = mistakes(text)
    return only


def test_the_smallest_file_has_every_default():
    config = read(BASE)
    assert config.uplink == UplinkSettings(url=(Broker("h", 1883, False),), client_id="g")
    assert (config.uplink.topic, config.uplink.keepalive) == ("bygate/v1", 20.0)
    assert (config.buffer.flush_interval, config.buffer.seal_interval) == (10.0, 60.0)
    assert (config.buffer.max_size, config.buffer.keep_free) == (None, None)
    assert config.gateway.state_dir == Path("/var/lib/bygate")
    assert config.sensors == {} == config.ports


def test_a_sensor_has_its_driver_with_its_settings_its_port_and_its_rhythm():
    more = 'unit = 3\nsettle = "1min"\nchunk = "1 KiB"\nmode = "shallow"\nbits = 7\nlabel = "x"\n'
    sensor = read(BUOY + more + "factor = 2\nswap = true\ndurable = true\n").sensors["a"]
    made = sensor.driver
    assert (made.unit, made.settle, made.chunk, made.mode) == (3, 60.0, 1024, "shallow")
    assert (made.bits, made.label, made.factor, made.swap) == (7, "x", 2.0, True)
    assert type(made.factor) is float
    assert (sensor.name, sensor.driver_name, sensor.interval) == ("a", "buoy", 60.0)
    assert (sensor.durable, sensor.port) == (True, PortSettings(path=Path("/dev/x")))


def test_a_port_by_name_brings_its_settings():
    ports = '[ports.rs485]\npath = "/dev/y"\nbaudrate = 2400\nparity = "E"\ndtr = false\n'
    config = read(ports + BUOY.replace("/dev/x", "rs485"))
    expected = PortSettings(path=Path("/dev/y"), baudrate=2400, parity="E", dtr=False)
    assert config.sensors["a"].port == config.ports["rs485"] == expected


def test_all_mistakes_come_at_once_in_the_order_of_the_file():
    text = (
        '[gateway]\nid = "a b"\n[uplink]\nkeepalive = 20\n[sitee]\n[sensors.a]\ndriver = "buyo"\n'
    )
    places = [":".join(line.split(":")[:2]) for line in mistakes(text)]
    keys = [
        "2: gateway.id",
        "3: uplink.url",
        "4: uplink.keepalive",
        "5: sitee",
        "7: sensors.a.driver",
    ]
    assert places == keys


def test_a_mistake_is_told_with_file_line_path_and_hint(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text(BUOY + 'intervall = "9s"\nunit = "FE"\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).splitlines() == [
        f"{file}:8: sensors.a.intervall: there is no such setting; did you mean 'interval'?",
        f"{file}:9: sensors.a.unit: expected a whole number, got 'FE'",
    ]


SENSOR_MISTAKES = {
    "unit = true": "expected a whole number, got true",
    "unit = 1.0": "expected a whole number, got 1.0",
    'unit = "5"': "expected a whole number, got '5'; did you mean it without quotes?",
    "unit = 248": "expected a whole number from 1 to 247, got 248",
    "unit = 0": "expected a whole number from 1 to 247, got 0",
    f"unit = 0x{'F' * 5000}": "from 1 to 247, got a number of more than 18 digits",
    f"factor = 0x{'F' * 5000}": "expected a number, got a number of more than 18 digits",
    "factor = nan": "expected a number, got nan",
    "factor = inf": "expected a number, got inf",
    "factor = 1979-05-27": "expected a number, got 1979-05-27",
    "factor = []": "expected a number, got []",
    "swap = 1": "expected true or false, got 1",
    "label = 5": "expected text in quotes, got 5",
    'mode = "Deep"': "expected one of 'deep', 'shallow', got 'Deep'; did you mean 'deep'?",
    'bits = "8"': "expected one of 7, 8, got '8'; did you mean 8?",
    "bits = 8.0": "expected one of 7, 8, got 8.0",
    "bits = true": "expected one of 7, 8, got true",
    "interval = 60": "expected a duration such as '60s', got 60; did you mean '60s'?",
    'interval = "60"': "got '60'; did you mean '60s'?",
    'interval = "5 minutes"': "got '5 minutes'; did you mean '5min'?",
    'interval = "5m"': "got '5m'; did you mean '5min'?",
    'interval = "-5s"': "expected a duration such as '60s', got '-5s'",
    'interval = "50ms"': "expected a duration such as '60s' from 100ms to 366d, got '50ms'",
    'interval = "400d"': "from 100ms to 366d, got '400d'",
    f'interval = "{"9" * 400}s"': "expected a duration such as '60s', got '9999",
    "interval = true": "expected a duration such as '60s', got true",
    "chunk = 512": "expected a size such as '512 MiB', got 512; did you mean '512 MiB'?",
    "chunk = 5000000": "got 5000000; did you mean '5000000 B'?",
    'chunk = "64k"': "got '64k'; did you mean '64 KiB'?",
    "durable = 0": "expected true or false, got 0",
}


@pytest.mark.parametrize("line", SENSOR_MISTAKES)
def test_a_value_of_the_wrong_kind_is_told_with_what_was_expected(line: str):
    found = mistake(BUOY + line)
    assert found.startswith(f"8: sensors.a.{line.split(maxsplit=1)[0]}: expected ")
    assert SENSOR_MISTAKES[line] in found


TABLE_MISTAKES = {
    "uplink.url: expected mqtt://HOST:PORT or mqtts://HOST:PORT, got": [
        *('"h"', '"http://h"', '"mqtt://"', '"mqtt://h:0"', '"mqtt://h:65536"', '"mqtt://h/x"'),
        *('"mqtt://[zz]"', '"mqtt://[1.2.3.4]"', '"mqtt://::1"', '"mqtt://a b"', "5", "[]", "[5]"),
        *('["mqtt://h", "x"]', '"MQTT://h"', '"mqtt://h\\n"', '"mqtt://h?x=1"', '"mqtt://.."'),
    ],
    "uplink.topic: expected": [
        '"a/+"',
        '"#"',
        '"/a"',
        '"a/"',
        '"a//b"',
        '""',
        '"$SYS"',
        "5",
        '"a\\u0000"',
    ],
    "gateway.id: expected 1 to 64 letters, digits, '.', '_' or '-', got": [
        *('"a/b"', '""', '"å"', '"+"', "5", f'"{"a" * 65}"'),
    ],
    "gateway.state_dir: expected a path beginning with '/', got": ['"x"', '"/a\\u0000"', "5"],
    "uplink.keepalive: expected a duration such as '60s' from 1s to 65535s, got": ['"0s"', '"1d"'],
    "uplink.client_id: expected text in quotes, one line, got": ['""', "5", '"a\\nb"'],
    "uplink.client_id: expected at most 65535 bytes, got 70000": [f'"{"é" * 35_000}"'],
    "site.location: expected [latitude, longitude] in degrees, such as [63.4333, 10.4032], got": [
        *(
            "[91, 0]",
            "[0, 181]",
            "[1]",
            "[1, 2, 3]",
            "[true, 1]",
            '"63, 10"',
            "[nan, 1]",
            "[[1], 2]",
        ),
    ],
    "buffer.max_size: expected a size such as '512 MiB' from 1 MiB, got": ['"0 B"', '"1000 KiB"'],
    "ports.p.baudrate: expected a whole number from 50 to 4000000, got": ["0", "-9600", "4000001"],
    "ports.p.stopbits: expected one of 1, 2, got": ["1.5", "3"],
    "ports.p.path: expected a path beginning with '/', got": ['"ttyUSB0"', '""'],
}


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, value) for text, values in TABLE_MISTAKES.items() for value in values],
)
def test_a_setting_of_the_gateway_that_would_not_do_is_refused(text: str, value: str):
    table, key = text.partition(":")[0].rsplit(".", 1)
    tables = {"gateway": 'id = "g"', "uplink": 'url = "mqtt://h"', "ports.p": 'path = "/dev/x"'}
    tables = {name: [line] for name, line in tables.items() if not line.startswith(f"{key} =")}
    tables.setdefault(table, []).append(f"{key} = {value}")
    found = mistake("".join("\n".join([f"[{name}]", *tables[name], ""]) for name in tables))
    assert text in found


def test_brokers_are_one_or_a_list_with_default_ports_and_ipv6():
    plain = read(BASE.replace('"mqtt://h"', '["mqtt://[::1]", "mqtt://b:99/"]')).uplink.url
    secure = '["mqtts://a.no", "mqtts://[fe80::1%eth0]:8884"]'
    brokers = [*plain, *read(BASE.replace('"mqtt://h"', secure)).uplink.url]
    assert [broker.url for broker in brokers] == [
        *("mqtt://[::1]:1883", "mqtt://b:99", "mqtts://a.no:8883", "mqtts://[fe80::1%eth0]:8884"),
    ]
    assert [broker.tls for broker in brokers] == [False, False, True, True]


def test_plain_tcp_is_no_stand_in_for_tls():
    found = mistake(BASE.replace('"mqtt://h"', '["mqtts://a", "mqtt://a"]'))
    assert "plain TCP is no stand-in for TLS" in found


def test_a_metered_link_has_other_defaults_which_give_way_to_what_is_set():
    metered = BASE + 'profile = "metered"\n'
    config = read(metered)
    assert (config.uplink.keepalive, config.buffer.seal_interval) == (300.0, 600.0)
    config = read(metered + 'keepalive = "30s"\n[buffer]\nseal_interval = "2min"\n')
    assert (config.uplink.keepalive, config.buffer.seal_interval) == (30.0, 120.0)
    config = read(BASE)
    assert (config.uplink.keepalive, config.buffer.seal_interval) == (20.0, 60.0)


SECRETS = (
    BASE.replace("mqtt://h", "mqtt://me:hunter2@h"),
    BASE + 'username = "me"\npassword_file = "hunter2"\n',
    BASE.replace("mqtt:", "mqtts:") + 'cert_file = "/c"\nkey_file = "hunter2"\n',
    BASE + 'password = "hunter2"\n',
    BASE + "password_file = hunter2\n",
)


@pytest.mark.parametrize("text", SECRETS)
def test_no_message_repeats_a_secret(text: str):
    assert "hunter2" not in mistake(text)


@pytest.mark.parametrize("key", ["ca_file", "cert_file"])
def test_certificates_without_tls_are_a_mistake(key: str):
    assert "did you mean mqtts://?" in mistake(BASE + f'{key} = "/x"\n')
    read(BASE.replace("mqtt:", "mqtts:") + f'{key} = "/x"\n')


def test_half_of_a_pair_is_a_mistake():
    found = mistakes(BASE.replace("mqtt:", "mqtts:") + 'key_file = "/k"\npassword_file = "/p"\n')
    assert [line.split(": ", 1)[1] for line in found] == [
        "uplink.key_file: has no effect without cert_file",
        "uplink.password_file: has no effect without username",
    ]


DRIVER_MISTAKES = {
    "buyo": "driver: there is no driver 'buyo'; did you mean 'buoy'?",
    "../etc": "driver: there is no driver '../etc'; `bygate drivers` lists them",
    "broken": "driver: driver 'broken' cannot be loaded: No module named 'outside_nowhere'",
    "nameless": "driver: driver 'nameless' cannot be loaded: it declares no model",
    "radio": "driver: needs a link of kind 'smoke', which this gateway does not have",
    "clash": "a: driver of outside is broken: TypeError: every sensor has the setting 'interval'",
    "odd": "a: driver of outside is broken: TypeError: 'things' has a type that no",
    "fragile": "a: driver of outside is broken: KeyError: 'nothing'",
    "buoy": "port: missing, but required by a serial driver; for example port = ",
}


@pytest.mark.parametrize("name", DRIVER_MISTAKES)
def test_a_driver_that_cannot_be_used_costs_one_mistake_with_its_cause(name: str):
    assert DRIVER_MISTAKES[name] in mistake(BASE + f'[sensors.a]\ndriver = "{name}"\n')


@pytest.mark.parametrize("driver", ['driver = "sds01"\n', "driver = 5\n", ""])
def test_without_its_driver_a_sensors_other_mistakes_are_told_all_the_same(driver: str):
    found = mistakes(BASE + f'[sensors.a]\n{driver}intervall = "9s"\ndurable = 1\nwind = "R"\n')
    assert [re.sub(r"^[0-9]+: sensors\.a\.", "", line).split(":")[0] for line in found] in (
        ["driver", "intervall", "durable"],
        ["driver", "durable", "intervall"],
    )
    assert any(line.endswith("no such setting; did you mean 'interval'?") for line in found)


def test_a_misspelt_driver_is_found_beside_the_missing_one():
    found = mistakes(BASE + '[sensors.a]\ndrivr = "sds011"\nport = "/dev/x"\nreport = true\n')
    assert len(found) == 2
    assert found[1] == "6: sensors.a.drivr: there is no such setting; did you mean 'driver'?"


def test_what_a_driver_says_of_its_settings_together_is_told_on_one_line():
    found = mistake(BUOY + "factor = 11\n")
    assert found == "5: sensors.a: a deep buoy has a factor of at most 10"


def test_a_required_setting_of_a_driver_is_asked_for_with_an_example():
    found = mistake(BASE + '[sensors.a]\ndriver = "strict"\nport = "/dev/x"\n')
    assert found == "5: sensors.a.height: missing, but required; for example height = 2.5"


def test_a_local_driver_takes_no_port():
    found = mistake(BASE + '[sensors.a]\ndriver = "attic"\nport = "/dev/x"\n')
    assert found == "7: sensors.a.port: a local driver has no port"


def test_a_port_that_is_not_there_gets_its_near_match():
    ports = '[ports.rs485]\npath = "/dev/y"\n'
    found = mistake(BUOY.replace("/dev/x", "rs486") + ports)
    assert found == "7: sensors.a.port: there is no [ports.rs486]; did you mean 'rs485'?"
    assert "a path begins with '/'" in mistake(BUOY.replace("/dev/x", "ttyUSB0"))


def two_buoys(one: str, other: str) -> str:
    return BASE + "".join(
        f'[sensors.{name}]\ndriver = "buoy"\nport = "{port}"\n'
        for name, port in (("a", one), ("b", other))
    )


def test_two_sensors_on_one_port_are_named_however_the_port_is_written(tmp_path: Path):
    device, link = tmp_path / "ttyUSB0", tmp_path / "by-id"
    link.symlink_to(device)
    ports = f'[ports.p]\npath = "{link}"\n'
    for one, other in ((device, device), (device, link), (link, "p"), ("p", device), ("p", "p")):
        found = mistake(two_buoys(str(one), str(other)) + ports)
        clash = f"{os.path.realpath(device)} is the port of sensor 'a'; they cannot share it"
        assert found == f"10: sensors.b.port: {clash}"


def test_a_shared_port_is_told_even_when_its_sensor_has_another_mistake():
    found = mistakes(two_buoys("/dev/x", "/dev/x") + "unit = 0\n")
    assert [line.split(": ")[1] for line in found] == ["sensors.b.port", "sensors.b.unit"]


def two_tags(one: str, other: str) -> str:
    lines = f'[sensors.a]\ndriver = "ruuvi"\n{one}\n[sensors.b]\n{other}\n'
    return BASE + lines


def test_two_sensors_that_are_the_same_device_are_named_however_the_address_is_written():
    one, same = 'address = "CC:B8:33:4C:88:4F"', 'address = "cc:b8:33:4c:88:4f"'
    twice = "CC:B8:33:4C:88:4F is read by 'ruuvi' for sensor 'a' already; remove one of the two"
    found = mistake(two_tags(one, f'driver = "ruuvi"\n{same}'))
    assert found == f"10: sensors.b.address: {twice}"
    assert set(read(two_tags(one, f'driver = "bthome"\n{same}')).sensors) == {"a", "b"}


@pytest.mark.parametrize("address", ["00:00:00:00:00:00", "ffffffffffff"])
def test_an_address_that_no_device_has_is_refused(address: str):
    found = mistake(BASE + f'[sensors.a]\ndriver = "ruuvi"\naddress = "{address}"\n')
    assert found == f"7: sensors.a.address: '{address}' is no device's address: " + (
        "`bygate scan` shows them"
    )


@pytest.mark.parametrize("name", ["hci00", "hci01", "hci1000", "HCI0"])
def test_a_name_that_no_adapter_has_is_refused(name: str):
    found = mistake(BASE + f'[bluetooth]\nadapter = "{name}"\n')
    assert found == f"6: bluetooth.adapter: expected an adapter such as 'hci0', got '{name}'"


@pytest.mark.parametrize("package", ["bleak", "dbus_fast"])
def test_a_package_that_ble_sensors_lack_is_told_with_what_mends_it(package: str):
    tag = 'driver = "ruuvi"\naddress = "CC:B8:33:4C:88:4F"\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        found = mistake(BASE + f'[sensors.a]\n{tag}[sensors.b]\ndriver = "attic"\n')
    needs = f"needs the package {package}: pip install 'bleak>=3.1,<4'"
    assert found == f"6: sensors.a.driver: {needs}"


def test_names_of_sensors_and_ports_follow_the_rule_of_the_gateways_name():
    text = BASE + '[sensors."a/b"]\ndriver = "attic"\n[ports."µ"]\npath = "/dev/x"\n'
    found = [line.split(", got ")[0] for line in mistakes(text)]
    rule = "a name that will not do: expected 1 to 64 letters, digits, '.', '_' or '-'"
    assert found == [f'5: sensors."a/b": {rule}', f'7: ports."\\u00b5": {rule}']


def test_names_that_differ_in_case_are_two_names():
    assert list(read(two_buoys("/dev/x", "/dev/y").replace("ors.b", "ors.A")).sensors) == ["a", "A"]


@pytest.mark.parametrize(
    "text", ["sensors = 5\n", "[[sensors]]\n", "sensors.a = 5\n", "ports = []\n"]
)
def test_what_is_no_table_is_one_mistake(text: str):
    assert "expected a table [" in mistake(text + BASE)


SYNTAX = {
    BASE
    + "[buffer]\nflush_interval = 10s\n": "6: not TOML at column 20: Expected newline or end of "
    'document after a statement; did you mean "10s", in quotes?',
    BASE + 'url = "mqtt://i"\n': "5: not TOML at column 17: this key stands twice",
    BASE + "[gateway]\n": "5: not TOML at column 9: this table stands twice",
    BASE + "[buffer": "5: not TOML: ",
    BASE + 'topic = "\n': "5: not TOML at column 10: ",
    BASE + "x = " + "[" * 5000: "5: not TOML",
    BASE + f"x = {'9' * 5000}": "5: not TOML: Exceeds the limit",
}


@pytest.mark.parametrize("text", SYNTAX)
def test_a_mistake_of_syntax_is_told_with_its_line(text: str):
    found = mistake(text)
    assert found.startswith(SYNTAX[text]) or found == "not TOML: nested too deeply"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path):
    assert "there is no such file" in str(unreadable(tmp_path / "none.toml"))
    assert "Is a directory" in str(unreadable(tmp_path))
    assert "cannot be read: embedded null byte" in str(unreadable(Path("a\0b")))
    assert mistake(BASE.encode() + b"# \xe5\n") == "not UTF-8: byte 0xe5 on line 5"


def unreadable(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value


def test_a_file_without_permission_names_what_helps(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.touch(mode=0o000)
    if os.access(file, os.R_OK):
        pytest.skip("root may read everything")
    assert "no permission to read it; use sudo" in str(unreadable(file))


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm():
    assert read(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode()) == read(BASE)


def test_settings_for_replay_are_checked_as_in_the_file():
    buoy = driver.find("buoy")
    texts = {"unit": "7", "settle": "5min", "mode": "shallow", "bits": "7", "swap": "true"}
    made = settings_from_text(buoy, texts | {"factor": "2.5", "label": "7", "chunk": "1 MiB"})
    assert (made.unit, made.settle, made.mode, made.bits) == (7, 300.0, "shallow", 7)
    assert (made.swap, made.factor, made.label, made.chunk) == (True, 2.5, "7", 1024**2)


def test_mistakes_in_settings_for_replay_name_the_option():
    texts = {"settle": "5", "swp": "true", "bits": "1", "unit": "1\nx = 2", "factor": "true"}
    with pytest.raises(ConfigError) as caught:
        settings_from_text(driver.find("buoy"), texts)
    assert sorted(str(caught.value).splitlines()) == [
        "--set bits: expected one of 7, 8, got '1'",
        "--set factor: expected a number, got true",
        "--set settle: expected a duration such as '60s', got '5'; did you mean '5s'?",
        "--set swp: there is no such setting; did you mean 'swap'?",
        "--set unit: expected a whole number, got '1\\nx = 2'",
    ]


def test_the_example_loads_and_its_defaults_are_the_programs():
    shown = EXAMPLE.read_text()
    uncommented = re.sub(r"(?m)^#(?! )(?!.*# for example$)", "", shown)
    assert len(uncommented) < len(shown)
    assert read(uncommented) == read(shown)


def test_every_example_in_the_example_file_is_a_good_value():
    config = read(re.sub(r"(?m)^#(?! )", "", EXAMPLE.read_text()))
    assert config.uplink.username == config.uplink.client_id == "trd-0042"
    assert config.site.location == (63.4333, 10.4032)


def test_every_setting_has_one_sentence():
    for settings in (type(getattr(read(BASE), table)) for table in ("gateway", "uplink", "buffer")):
        for setting in settings_of(settings).values():
            assert re.fullmatch(r"[A-Z].*\.", setting.doc)


@given(st.sampled_from(["ms", "s", "min", "h", "d"]), st.integers(1, 9999))
def test_a_duration_is_shown_as_it_is_read(unit: str, count: int):
    seconds = driver.duration(f"{count}{unit}")
    assert driver.duration(shown_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@given(st.integers(0, 2**50))
def test_a_size_is_shown_as_it_is_read(count: int):
    assert driver.size(shown_size(count)) == count


VALUES = (
    "1",
    "'#'",
    '"""\na = "1\n[b]\n"""""',
    "'''\n']]\n''''",
    "[\n1, # ]\n2\n]",
    '{ x = "}" }',
    '"\\"#"',
)
KEYS = {
    "a": ("a",),
    '"b.c"': ("b.c",),
    "'d'.e": ("d", "e"),
    '"\\u00e5" . f': ("å", "f"),
    "9.5": ("9", "5"),
}


@given(st.randoms(use_true_random=False))
def test_each_key_is_found_on_its_line(chance: random.Random):
    lines, expected = ["# head"], {}
    for number in range(5):
        lines.append(f"[ t.'{number}' ] # [x]" if number % 2 else f'[["{number}"]]')
        for key, path in KEYS.items():
            table = ("t", str(number)) if number % 2 else (str(number),)
            expected[*table, *path] = len(lines) + 1
            lines += f"{key} = {chance.choice(VALUES)}".split("\n")
    found = key_lines("\n".join(lines))
    assert {path: found[path] for path in expected} == expected


def test_what_stands_in_no_line_of_its_own_has_its_parents():
    lines = key_lines("\n[a]\nb = {c = 1}\n")
    assert [line_of(path, lines) for path in ((), ("a", "x"), ("a", "b", "c"))] == [1, 2, 3]


def never_another_exception(text: str | bytes) -> None:
    try:
        assert isinstance(read(text), Config)
    except ConfigError as error:
        assert error.mistakes
        assert len(str(error).splitlines()) == len(error.mistakes)


@given(st.binary() | st.text())
def test_any_bytes_give_settings_or_mistakes(noise: str | bytes):
    never_another_exception(noise)


SCRAPS = st.sampled_from(
    [
        *"[]{}=.,#\"'\n\\ é\0",
        "[[",
        '"""',
        "'''",
        "sensors",
        "ports",
        "-1",
        "0x" + "f" * 4000,
        "1e999",
    ]
)


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 40), SCRAPS), min_size=1, max_size=4)
)
def test_a_damaged_file_gives_settings_or_mistakes(damage: list[tuple[int, int, str]]):
    text = EXAMPLE.read_text()
    for at, length, scrap in damage:
        text = text[: at % len(text)] + scrap + text[at % len(text) + length :]
    never_another_exception(text)


TOML_VALUES = st.sampled_from(
    [
        *("0", "-1", "1e400", "nan", "true", '""', '"a"', "[]", "{}", "[[1], {}]", "07:32:00"),
        *("0x" + "F" * 5000, '"/\\u0000"', '"60s"', '"buoy"', '"radio"', "{ x = 1 }", '"1\\n2"'),
    ]
)
TOML_KEYS = st.sampled_from(
    [
        f"{table}.{key}"
        for table in ("gateway", "uplink", "sensors.a")
        for key in ("id", "url", "port")
    ]
    + ["sensors", "ports", "site.location", "buffer.max_size", "sensors.a.driver", "sensors.a.bits"]
    + ["ports.p.path", "ports.p.parity", 'sensors."\\n".driver', "uplink.key_file", "sensors.a"]
)


@given(st.dictionaries(TOML_KEYS, TOML_VALUES))
def test_any_values_of_known_keys_give_settings_or_mistakes(values: dict[str, str]):
    never_another_exception("\n".join(f"{key} = {value}" for key, value in values.items()))


def test_one_of_something_is_no_plural():
    assert [counted(n, "batch") for n in (0, 1, 2)] == ["0 batches", "1 batch", "2 batches"]
    assert [counted(n, "reading") for n in (0, 1, 2)] == ["0 readings", "1 reading", "2 readings"]
