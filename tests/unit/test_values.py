"""Values of options as people write them."""

import pytest
from click.testing import CliRunner

from loom.cli import server, worker
from loom.cli.values import parse_duration
from loom.errors import LoomError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("30m", 1800),
        (" 2h ", 7200),
        ("1H30M", 5400),
        ("1d12h", 129_600),
        ("01:30:00", 5400),
        ("100:00:00", 360_000),
        ("2-00:00:00", 172_800),
        ("1-02:03:04", 93_784),
        ("29:58", 1798),  # as squeue prints what is left below an hour
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "soon", "1h 30m", "30m1h", "5x", "1:2:3", "1-12", "1-02:03", "UNLIMITED"])
def test_what_is_no_duration_is_told_what_is_one(text: str) -> None:
    with pytest.raises(LoomError, match=r"is no time: write seconds, or such as 30m, 2h, 1h30m, or \[D-\]HH:MM:SS"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0h", "00:00:00", "-5", "nan", "inf", "1e12", "400d"])
def test_durations_are_positive_and_bounded(text: str) -> None:
    with pytest.raises(LoomError, match="more than 0 seconds and at most a year"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("options", "story"),
    [
        (("--worker-timeout", "0.05"), "0.05 is not in the range x>=0.1"),
        (("--crash-limit", "-1"), "-1 is not in the range x>=0"),
        (("--lineage-limit", "much"), "'much' is no size"),
    ],
)
def test_server_options_that_are_none(options: tuple[str, ...], story: str) -> None:
    said = CliRunner().invoke(server.main, options)
    assert said.exit_code == 2
    assert story in said.output


@pytest.mark.parametrize(
    ("options", "story"),
    [
        (("--drain-timeout", "-1"), "-1.0 is not in the range x>=0"),
        (("--time-limit", "soon"), "'soon' is no time: write seconds, or such as 30m"),
        (("--time-limit", "30"), "--time-limit (30 s) is not longer than --drain-timeout (30 s)"),
    ],
)
def test_worker_options_that_are_none(options: tuple[str, ...], story: str) -> None:
    said = CliRunner().invoke(worker.main, (*options, "localhost"))
    assert said.exit_code == 2
    assert story in said.output
