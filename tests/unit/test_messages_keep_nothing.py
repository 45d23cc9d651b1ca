"""Messages in a service: reading them leaves nothing behind, and what checks them is there from its start."""

import tracemalloc
from uuid import UUID

import pytest
from pydantic import ConfigDict

from errata.contracts import Heartbeat, Message
from errata.contracts.base import complete_messages
from errata.settings import ServiceSettings
from errata_services import bootstrap

MESSAGES = 5_000
KEPT_BYTES = 50_000


class Caching(Heartbeat):
    """A message with pydantic's own setting."""

    model_config = ConfigDict(cache_strings="all")


def kept_bytes(model: type[Message], salt: int) -> int:
    """What stays allocated after reading messages of which no two have a text in common."""
    lines = [
        f'{{"heartbeat_id":"{UUID(int=salt << 64 | at)}","time":"2026-01-05T12:00:00Z","partition":1}}'.encode()
        for at in range(MESSAGES)
    ]
    model.model_validate_json(lines[0])
    tracemalloc.start()
    try:
        for line in lines:
            model.model_validate_json(line)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_texts_of_messages_are_not_kept() -> None:
    assert kept_bytes(Heartbeat, 1) < KEPT_BYTES


def test_with_the_setting_of_pydantic_they_would_be() -> None:
    """The control."""
    assert kept_bytes(Caching, 2) > 3 * KEPT_BYTES


def test_messages_are_complete_before_the_first_is_made() -> None:
    class Waiting(Heartbeat):
        """A message that nobody has made yet."""

    assert not Waiting.__pydantic_complete__  # the control
    complete_messages()
    assert Waiting.__pydantic_complete__


def test_a_service_completes_them_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise InterruptedError

    monkeypatch.setattr(bootstrap, "complete_messages", asked)
    with pytest.raises(InterruptedError), bootstrap.service_parts("anomaly-detector", ServiceSettings()):
        pass
