import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import ConfigError, load
from gateway.driver import find
from gateway.key import HIDDEN, Key

ROOT = Path(__file__).parent.parent
DIGITS = "231d39c1d7cc1ab1aee224cd096db932"
CONFIG = """
[gateway]
id = "trd-0042"
[uplink]
url = "mqtt://127.0.0.1"
[sensors.door]
driver = "bthome"
address = "54:48:E6:8F:80:A5"
key = {}
"""


def written(folder: Path, key: str) -> Path:
    file = folder / "config.toml"
    file.write_text(CONFIG.format(key))
    return file


def test_a_key_is_shown_nowhere():
    driver = find("bthome")(key=Key(DIGITS))
    shown = f"{driver} {driver!r} {Key(DIGITS)} {vars(driver)}"
    assert HIDDEN in shown
    assert DIGITS not in shown
    assert bytes.fromhex(DIGITS).hex(" ") not in shown


def test_check_hides_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--json", "-c", str(written(tmp_path, f'"{DIGITS}"'))]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["sensors"][0]["settings"] == {"key": HIDDEN}
    assert DIGITS not in out


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (f'"{DIGITS[:-1]}"', "got 31"),
        (f'"{DIGITS}0"', "got 33"),
        (f'"{DIGITS[:-1]}x"', "got other characters among them"),
        ('""', "got 0"),
        ("23139317", "got a number without quotes"),
        ("true", "got something else"),
        (
            f'"{DIGITS[:16]} {DIGITS[16:]}"',
            "got spaces, ':' or '-' among them",
        ),
    ],
)
def test_a_key_that_is_none_is_told_without_showing_it(key: str, got: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, key))
    (mistake,) = caught.value.mistakes
    assert mistake.path == "sensors.door.key"
    assert mistake.text == f"expected 32 hexadecimal digits in quotes, {got}"


def test_a_key_given_to_replay_is_not_shown_either(capsys: pytest.CaptureFixture[str]):
    assert main(["replay", "bthome", "--set", f"key={DIGITS}0", "00"]) == 2
    assert main(["replay", "bthome", "--set", f"key={DIGITS}", "41a472"]) == 1
    shown = "".join(capsys.readouterr())
    assert DIGITS[:-1] not in shown
    assert "--set key: expected 32 hexadecimal digits" in shown


def test_without_the_extra_the_line_that_mends_it_is_told(tmp_path: Path):
    program = "import sys; sys.modules['cryptography'] = None\n"
    program += "from gateway.cli import main; raise SystemExit(main())"
    check = ["check", "-c", str(written(tmp_path, f'"{DIGITS}"'))]
    done = subprocess.run(
        [sys.executable, "-c", program, *check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "config.toml:9: sensors.door.key: needs the package cryptography" in done.stderr
    assert "pip install 'bygate[ble-encrypted]'" in done.stderr


def test_a_key_decrypts_what_was_sealed_with_it_and_nothing_else():
    key, nonce = Key(DIGITS), bytes.fromhex("5448e68f80a5d2fc4100112233")
    sealed = bytes.fromhex("a47266c95f7378237214")
    assert key.decrypted(nonce, sealed) == bytes.fromhex("02ca0903bf13")
    assert key.decrypted(nonce, sealed[:-1] + b"\x15") is None
    assert key.decrypted(nonce, b"") is None
