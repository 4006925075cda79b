"""The main rows of the conformance suite between three hosts."""

import pytest
from needs import unless_all

from engines import run_conformance
from hosts import why_not


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["hosts-tls", "hosts-plain"])
def test_main_rows(name: str) -> None:
    if reason := why_not():
        unless_all(reason)
    run_conformance(name)
