"""What was committed outlives the process; what was being written when it died was never committed."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from errata.adapters.journal import DataLock, Frame, Journal, decode_frame, encode_frame
from errata.adapters.memory import MemoryTransport
from errata.contracts.topics import DAY_S, Topic
from errata.errors import Misconfigured, StateDamaged, Unavailable
from errata.ports import Outgoing, Record

HEADER_BYTES = 16
TOPICS = {
    "log": Topic("log", "a test", "key", 2, DAY_S, None, ("test",), ("test",)),
    "table": Topic("table", "a test", "key", 1, None, None, ("test",), ("test",)),
}


def opened(path: Path) -> MemoryTransport:
    return MemoryTransport(TOPICS, journal=Journal(path))


def write(transport: MemoryTransport, *values: str, topic: str = "log", key: bytes | None = b"k") -> None:
    producer = transport.producer("writer")
    producer.begin()
    for number, value in enumerate(values):
        partition = number % transport.partitions(topic)
        producer.produce(Outgoing(topic, key, value.encode(), (("h", b"\0\xff"),), partition))
    producer.commit()


def commit_offsets(transport: MemoryTransport, offset: int) -> None:
    consumer = transport.consumer("group", "log", instance="0")
    consumer.poll(0)
    producer = transport.producer("p")
    producer.begin()
    producer.send_offsets({("log", 0): offset}, consumer)
    producer.commit()
    consumer.close()


def content(transport: MemoryTransport) -> list[list[Record]]:
    return [list(transport.read_from((name, n))) for name, topic in TOPICS.items() for n in range(topic.partitions)]


def read_in_order(transport: MemoryTransport) -> list[bytes | None]:
    return [record.value for record in transport.consumer("another", "log", instance="0").poll(1_000)]


def test_committed_transactions_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    transport = opened(path)
    transport.advance_record_time(77)
    write(transport, "a", "b", "c")
    write(transport, "d", topic="table", key=None)
    commit_offsets(transport, 2)
    before = content(transport)
    transport.close()
    again = opened(path)
    assert content(again) == before
    assert again.record_time_us == 77
    assert again.consumer("group", "log", instance="0").committed([("log", 0), ("log", 1)]) == {("log", 0): 2}
    assert read_in_order(again) == [b"a", b"b", b"c"]
    write(again, "e")
    assert again.end_offset(("log", 0)) == 3


def test_aborted_and_open_transactions_are_not(tmp_path: Path) -> None:
    transport = opened(tmp_path / "journal.bin")
    producer = transport.producer("p")
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"aborted", partition=0))
    producer.abort()
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"open", partition=0))
    transport.close()
    assert content(opened(tmp_path / "journal.bin")) == [[], [], []]


def journal_of(path: Path, batches: Sequence[Sequence[str]]) -> list[int]:
    """Write batches; the file sizes after each."""
    transport, sizes = opened(path), [path.stat().st_size]
    for batch in batches:
        write(transport, *batch)
        sizes.append(path.stat().st_size)
    transport.close()
    return sizes


def test_frame_cut_off_at_any_byte_is_no_transaction(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    *_, last, end = journal_of(path, [["a", "b"], ["c", "d"]])
    whole = path.read_bytes()
    for cut in range(last, end):
        path.write_bytes(whole[:cut])
        transport = opened(path)
        assert read_in_order(transport) == [b"a", b"b"]
        assert path.stat().st_size == last
        write(transport, "e")
        transport.close()
        again = opened(path)
        assert read_in_order(again) == [b"a", b"b", b"e"]
        again.close()
    path.write_bytes(whole)
    assert read_in_order(opened(path)) == [b"a", b"b", b"c", b"d"]


def test_file_that_grew_before_it_was_filled_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    *_, end = journal_of(path, [["a"]])
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read_in_order(opened(path)) == [b"a"]
    assert path.stat().st_size == end


def test_damage_at_any_byte_of_a_frame_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    _, first, second, _ = journal_of(path, [["a"], ["b"], ["c"]])
    whole = path.read_bytes()
    for at in range(first, second):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(StateDamaged, match=f"journal.bin is damaged at byte {first};"):
            opened(path)
        assert path.stat().st_size == len(whole), "nothing may be dropped"


def test_damage_in_the_last_frame_is_not_taken_for_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    *_, last, end = journal_of(path, [["a"], ["b"]])
    whole = path.read_bytes()
    for at in (last, last + HEADER_BYTES - 1, last + HEADER_BYTES, end - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises(StateDamaged, match=f"at byte {last};"):
            opened(path)


def test_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    path.write_bytes(b"something else altogether")
    with pytest.raises(Misconfigured, match=r"journal\.bin is not a journal"):
        Journal(path)
    assert path.read_bytes() == b"something else altogether"


@pytest.mark.parametrize("cut", [0, 1, 15])
def test_file_whose_making_was_cut_short_is_made_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.bin"
    Journal(path).close()
    path.write_bytes(path.read_bytes()[:cut])
    assert content(opened(path)) == [[], [], []]


def test_frame_survives_its_wire_form() -> None:
    records = [
        Record("log", 3, 2**40, -5, None, None),
        Record("tøpic", 0, 0, 2**60, b"", b"", (("h", b""), ("é", b"\0"))),
    ]
    frame = Frame(9, records, {"group": {("log", 1): 7, ("table", 0): 2**50}}, {("log", 2): (5, 9)})
    assert decode_frame(encode_frame(frame)[HEADER_BYTES:]) == frame


def test_superseded_records_are_compacted_away_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    transport = opened(path)
    write(transport, "a", "b", "c")
    for number in range(500):
        write(transport, f"{number:0100}", topic="table", key=f"key-{number % 3}".encode())
    commit_offsets(transport, 1)
    transport.close()
    size = path.stat().st_size
    again = opened(path)
    kept, ends = content(again), [again.end_offset(("table", 0)), again.end_offset(("log", 1))]
    again.close()
    assert path.stat().st_size < size / 50
    third = opened(path)
    assert content(third) == kept
    assert [record.offset for record in kept[2]] == [497, 498, 499]
    assert [third.end_offset(("table", 0)), third.end_offset(("log", 1))] == ends == [500, 1]
    assert third.consumer("group", "log", instance="0").committed([("log", 0)]) == {("log", 0): 1}
    assert read_in_order(third) == [b"a", b"b", b"c"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["journal.bin"]
    write(third, "d", topic="table")
    third.close()
    assert opened(path).end_offset(("table", 0)) == 501


def test_journal_without_waste_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    journal_of(path, [["a", "b"], ["c"]])
    before = path.stat().st_ino
    opened(path).close()
    assert path.stat().st_ino == before


def test_full_disk_voids_the_transaction_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    transport = opened(path)
    write(transport, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
    try:
        with pytest.raises(Unavailable, match="free some space"):
            write(transport, "b" * 1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_in_order(transport) == [b"a"]
    write(transport, "c")
    transport.close()
    assert read_in_order(opened(path)) == [b"a", b"c"]


def test_data_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with DataLock(folder):
        with pytest.raises(Misconfigured, match="in use by another errata process"):
            DataLock(folder)
        code = (
            f"from pathlib import Path; from errata.adapters.journal import DataLock; DataLock(Path({str(folder)!r}))"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "in use by another errata process" in other.stderr
    DataLock(folder).release()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from errata.adapters.journal import DataLock;"
        f"lock = DataLock(Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    DataLock(tmp_path).release()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.bin").close()
    assert os.stat(tmp_path / "journal.bin").st_mode & 0o077 == 0
