from gateway.reading import CATALOGUE, PM2_5, TEMPERATURE, Quantity


def test_every_name_in_the_catalogue_is_the_lower_case_of_its_constant():
    from gateway import reading

    constants = {n.lower(): q for n, q in vars(reading).items() if isinstance(q, Quantity)}
    assert constants == CATALOGUE


def test_a_probe_and_a_phase_keep_everything_but_the_name():
    assert TEMPERATURE.part(2) == Quantity("temperature_2", "Cel", 3, -90, 150)
    assert PM2_5.part("l1").name == "pm2_5_l1"
