"""CloudEvents 1.0 headers, binary mode, on what the stages write: for routing without reading the value."""

from errata.contracts.anomalies import Anomaly
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.strict import rfc3339

Headers = tuple[tuple[str, bytes], ...]

HEARTBEAT = "errata.heartbeat.v1"
IS_HEARTBEAT = ("ce_type", HEARTBEAT.encode())  # the header by which a stage knows one without reading its value


def cloud_event(message: Anomaly, topic: str, stage: str) -> Headers:
    """Headers of a message about a case. Its id is case and ``seq``, so a replayed record has the same one."""
    fields = {
        "ce_specversion": "1.0",
        "ce_type": topic,
        "ce_source": f"/errata/{stage}",
        "ce_id": f"{message.episode.id}:{message.episode.seq}",
        "ce_time": rfc3339(message.time),
        "ce_subject": message.model.name,
        "content-type": "application/json",
    }
    return tuple((name, text.encode()) for name, text in fields.items())


def heartbeat_event(message: Heartbeat, stage: str) -> Headers:
    """Headers of a heartbeat. The same id may come in several partitions, so the partition is part of its id."""
    fields = {
        "ce_specversion": "1.0",
        "ce_type": HEARTBEAT,
        "ce_source": f"/errata/{stage}",
        "ce_id": f"{message.heartbeat_id}:{message.partition}",
        "ce_time": rfc3339(message.time),
        "content-type": "application/json",
    }
    return tuple((name, text.encode()) for name, text in fields.items())
