import json
from pathlib import Path

from gateway import __version__
from gateway.about import about
from gateway.config import load

BASE = '[gateway]\nid = "trd-0042"\n[uplink]\nurl = "mqtt://h"\n'


def said(directory: Path, more: str = "") -> object:
    file = directory / "config.toml"
    file.write_text(BASE + more)
    return json.loads(about(load(file)))


def test_it_says_where_the_box_hangs_who_answers_for_it_and_what_it_measures(tmp_path: Path):
    found = said(
        tmp_path,
        '[site]\nname = "Nidelva, Bakke bru"\nlocation = [63.4333, 10.4032]\n'
        'purpose = "Warns of floods"\n'
        'contact = "sensors@example.no"\n'
        '[sensors.air]\ndriver = "sds011"\nport = "/dev/x"\ninterval = "10min"\n',
    )
    assert found == {
        "gateway": "trd-0042",
        "version": __version__,
        "site": {
            "name": "Nidelva, Bakke bru",
            "location": [63.4333, 10.4032],
            "purpose": "Warns of floods",
            "contact": "sensors@example.no",
        },
        "sensors": {
            "air": {
                "driver": "sds011",
                "model": "Nova SDS011",
                "interval_s": 600.0,
                "quantities": {"pm2_5": {"unit": "ug/m3"}, "pm10": {"unit": "ug/m3"}},
            }
        },
    }


def test_what_is_not_said_is_null(tmp_path: Path):
    found = said(tmp_path)
    assert found["site"] == {"name": None, "location": None, "purpose": None, "contact": None}
    assert found["sensors"] == {}
