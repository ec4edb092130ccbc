"""Numbers in messages are written as people write them."""

import pytest

from pimlip_zoo.errors import plain_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1106.4, "1,110"),
        (999.9, "1,000"),
        (55.55, "55.5"),
        (12.0, "12"),
        (0.04336, "0.0434"),
        (1.23e-5, "0.0000123"),
        (-3.0, "-3"),
        (1e7, "10,000,000"),
        (0.0, "0"),
        (float("inf"), "inf"),
    ],
)
def test_no_power_of_ten(value, text):
    assert plain_number(value) == text


def test_so_many_digits_as_asked_for():
    assert plain_number(627.5095, 4) == "627.5"
    assert plain_number(1602.1766, 4) == "1,602"
