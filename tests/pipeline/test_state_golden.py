"""The state that release 0.1.0 wrote is read by this one and gives the same next output, byte for byte."""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Contract, Reference
from errata.contracts.topics import CONTRACTS, REFERENCES, STAGES, TOPICS, state_topic
from errata.domain.array_codec import pack_arrays, unpack_arrays
from errata.domain.detection import state as state_module
from errata.domain.detection.state import SLOT_SCHEMA, WIDTH, State, Tables
from errata.domain.state_schemas import Schema
from errata.errors import StateDamaged
from errata.ports import Outgoing, Record
from errata.runtime.changelog import read_state
from errata_services import anomaly_detector
from errata_services.anomaly_detector import CONFIG_HASH, SLOT, AnomalyDetector
from errata_services.bootstrap import publish_tables

GOLDEN = Path(__file__).parent / "golden" / "state"
RELEASES = sorted(path.parent.name for path in GOLDEN.glob("*/anomaly-detector.json.gz"))
TOPIC = state_topic(STAGES[0])


@cache
def golden(release: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(gzip.decompress((GOLDEN / release / "anomaly-detector.json.gz").read_bytes()))
    return found


def restored(release: str) -> tuple[dict[bytes, bytes], MemoryTransport]:
    transport = MemoryTransport(TOPICS)
    tables = golden(release)["tables"]
    for contract, reference in zip(tables["contracts"], tables["references"], strict=True):
        publish_tables(
            transport,
            {CONTRACTS: Contract.model_validate_json(contract), REFERENCES: Reference.model_validate_json(reference)},
        )
    producer = transport.producer("golden")
    producer.begin()
    for key, value in golden(release)["changelog"]:
        producer.produce(Outgoing(TOPIC, base64.b64decode(key), base64.b64decode(value), partition=0))
    producer.commit()
    entries, position = read_state(transport, TOPIC, 0)
    assert position is not None
    assert {position.config_hash} <= {CONFIG_HASH, *AnomalyDetector.migrates}
    return entries, transport


def stage(release: str, entries: Mapping[bytes, bytes], transport: MemoryTransport) -> AnomalyDetector:
    made = AnomalyDetector(transport, MsgspecDecoder(b"0" * 32))
    made.restore(0, entries)
    return made


def next_outputs(made: AnomalyDetector, release: str) -> list[str]:
    batch = [
        Record(topic, 0, offset, time_us, base64.b64decode(key) if key else None, value.encode())
        for topic, offset, time_us, key, value in golden(release)["next"]
    ]
    return [(output.value or b"").decode() for output in made.step(batch, None).outputs]


@pytest.mark.parametrize("release", RELEASES)
def test_state_of_an_older_release_gives_the_same_next_output(release: str) -> None:
    assert next_outputs(stage(release, *restored(release)), release) == golden(release)["outputs"]
    assert len(golden(release)["outputs"]) >= 5


def test_the_comparison_would_find_lost_state() -> None:
    entries, transport = restored(RELEASES[0])
    empty = stage(RELEASES[0], {}, transport)
    assert next_outputs(empty, RELEASES[0]) != golden(RELEASES[0])["outputs"]
    assert any(key.startswith(SLOT) for key in entries)


def test_what_the_release_before_reads_is_still_written() -> None:
    """The way back: its reader wants these, and passes over what it does not know."""
    entries, transport = restored(RELEASES[-1])
    made = stage(RELEASES[-1], entries, transport)
    old = next(value for key, value in sorted(entries.items()) if key.startswith(SLOT))
    version, old_meta, old_arrays = unpack_arrays(old)
    slot = next(one for one in made.slots if [one.tenant, one.model, one.purpose] == old_meta["slot"])
    meta, arrays = made.state.pack(slot)
    assert version == SLOT_SCHEMA.version == 1
    assert old_meta.keys() <= meta.keys()
    assert {name: (array.shape, array.dtype) for name, array in old_arrays.items()} == {
        name: (array.shape, array.dtype) for name, array in arrays.items()
    }
    assert arrays["fixed"].shape == (WIDTH,)


# A second version, invented: one field is called differently, and the sums are in tenths of thousandths.

V2 = Schema(
    "slot",
    2,
    {
        1: lambda content: (
            {**content[0], "who": content[0]["slot"]},
            {**content[1], "milli_sums": content[1]["milli_sums"] * 10},
        )
    },
)


def invented(entries: Mapping[bytes, bytes], version: int) -> dict[bytes, bytes]:
    """The same state with its slots said to be of another version."""
    changed = dict(entries)
    for key, value in entries.items():
        if key.startswith(SLOT):
            _, meta, arrays = unpack_arrays(value)
            changed[key] = pack_arrays(version, meta, arrays)
    return changed


def test_an_invented_second_version_reads_the_first_and_itself() -> None:
    entries, _ = restored(RELEASES[-1])
    value = next(value for key, value in sorted(entries.items()) if key.startswith(SLOT))
    version, *content = unpack_arrays(value)
    meta, arrays = V2.read(version, content)
    assert meta["who"] == content[0]["slot"]
    np.testing.assert_array_equal(arrays["milli_sums"], content[1]["milli_sums"] * 10)
    assert V2.read(2, (meta, arrays)) == (meta, arrays)


@pytest.mark.parametrize(("version", "reason"), [(2, "schema_newer"), (0, "schema_older")])
def test_a_slot_of_another_version_is_refused_by_the_stage(version: int, reason: str) -> None:
    entries, transport = restored(RELEASES[-1])
    with pytest.raises(StateDamaged, match=f"^{reason}: its slot is of version {version}"):
        stage(RELEASES[-1], invented(entries, version), transport)


def test_every_kind_of_record_has_a_schema() -> None:
    named = {name for name in vars(state_module) if name.endswith("_SCHEMA")}
    assert named <= set(vars(anomaly_detector))
    assert len(named) == 5


def test_a_key_that_the_stage_does_not_write_is_refused() -> None:
    entries, transport = restored(RELEASES[-1])
    with pytest.raises(StateDamaged, match=r"^foreign_key: "):
        stage(RELEASES[-1], {**entries, b"counts:x": b"\x01\x01\x01\x00{}"}, transport)


def test_a_slot_whose_arrays_are_not_of_one_length_is_refused() -> None:
    """The counts of slots lie one behind the other: one with too many would shift those of all that follow."""
    entries, transport = restored(RELEASES[-1])
    stage(RELEASES[-1], entries, transport)  # it is the change below that is refused
    key = next(key for key in sorted(entries) if key.startswith(SLOT))
    version, meta, arrays = unpack_arrays(entries[key])
    for name in ("first_us", "milli_sums"):
        longer = {**arrays, name: np.append(arrays[name], 7)}
        with pytest.raises(ValueError, match="as many counts as times and sums"):
            stage(RELEASES[-1], {**entries, key: pack_arrays(version, meta, longer)}, transport)
    narrow = {**arrays, "fixed": arrays["fixed"][:-1]}
    with pytest.raises(ValueError, match="fixed fields"):
        stage(RELEASES[-1], {**entries, key: pack_arrays(version, meta, narrow)}, transport)


def test_slots_that_are_restored_have_the_tables_of_slots_that_came_one_by_one() -> None:
    """With a place of a slot that left among them, and one that was given another profile and lies elsewhere."""
    entries, transport = restored(RELEASES[-1])
    together = stage(RELEASES[-1], entries, transport).state
    alone = State()
    for slot in together.slots_of(0):
        alone.add(*slot.key, 0, slot.profile)
    same_tables(together.tables, alone.tables)
    gone, moved = alone.slots_of(0)[0], alone.slots_of(0)[1]
    alone.remove(gone)
    alone.replace_profile(moved, moved.profile)
    tables = alone.tables
    with pytest.raises(AssertionError):
        same_tables(together.tables, tables)
    for slot in alone.slots_of(0):
        counters, cells = alone.counters_of(slot), alone.cells_of(slot)
        assert tables.counter_base[slot.index] == counters.start
        assert (tables.slot_of_counter[counters] == slot.index).all()
        assert tables.threshold[counters].tolist() == [counter.threshold for counter in slot.profile.counters]
        first = tables.number_cell[tables.number_channel[slot.index] :][: slot.profile.number_channels]
        assert (
            first.tolist()
            == [
                cells.start + base if channel else -1
                for channel, base in zip(slot.profile.channels, slot.profile.cell_base, strict=True)
            ][: slot.profile.number_channels]
        )
    alone.compact()
    assert len(alone.tables.features) == len(together.slots_of(0)) - 1


def same_tables(one: Tables, other: Tables) -> None:
    for field in fields(Tables):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
