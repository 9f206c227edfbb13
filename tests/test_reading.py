from pathlib import Path

from gateway.reading import CATALOGUE, PM2_5, TEMPERATURE, Quantity, numbered


def test_every_name_in_the_catalogue_is_the_lower_case_of_its_constant():
    from gateway import reading

    constants = {n.lower(): q for n, q in vars(reading).items() if isinstance(q, Quantity)}
    assert constants == CATALOGUE


def test_a_probe_and_a_phase_keep_everything_but_the_name():
    assert TEMPERATURE.part(2) == Quantity("temperature_2", "Cel", 3, -90, 150)
    assert PM2_5.part("l1").name == "pm2_5_l1"


def test_what_comes_again_becomes_a_part():
    found = numbered([(TEMPERATURE, 1.0), (PM2_5, 2.0), (TEMPERATURE, 3.0), (TEMPERATURE, None)])
    named = {quantity.name: value for quantity, value in found.items()}
    assert named == {"temperature": 1.0, "pm2_5": 2.0, "temperature_2": 3.0, "temperature_3": None}


UNITS = Path(__file__).parent / "data" / "senml-units.txt"

UCUM = {"/cm3", "Bq/m3"}
"""Units that SenML has no name for."""


def test_a_unit_is_a_senml_name_or_one_of_the_few_that_senml_lacks():
    senml = {
        name
        for line in UNITS.read_text().splitlines()
        if not line.startswith(("#", "["))
        for name in line.split()
    }
    used = {quantity.unit for quantity in CATALOGUE.values()} - {""}
    assert used - senml == UCUM
    assert senml & UCUM == set()
