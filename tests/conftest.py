"""What several folders of tests share: the profile of the demo's model, which takes a second or two to build."""

import pytest

from errata.contracts import Contract, PredictionEvent, Reference
from errata.domain.profiles import build_reference
from errata_services.demo import stream


@pytest.fixture(scope="session")
def census_contract() -> Contract:
    return stream.contract()


@pytest.fixture(scope="session")
def census_reference(census_contract: Contract) -> Reference:
    """The reference of the demo, of 10,000 rows."""
    rows = (PredictionEvent.model_validate_json(line) for line in stream.reference_events())
    return build_reference(rows, census_contract, dataset="census 2015")
