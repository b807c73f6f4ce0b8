"""The pause before the restart of a worker."""

from proxy.scaler.backoff import deaths_in_row, pause


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [pause(deaths) for deaths in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause(10_000) == 60


def test_a_long_uptime_resets_the_number_of_deaths() -> None:
    assert deaths_in_row(5, uptime=3.0) == 6
    assert deaths_in_row(5, uptime=60.0) == 1
