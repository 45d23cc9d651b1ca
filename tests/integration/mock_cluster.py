"""librdkafka's mock cluster: a broker in this process that can be told to answer with any error.

Its functions come with the client's own library. They may change with any release of it: `FUNCTIONS` names those that
tests rest on. The mock judges no transactions: it moves no offsets, hides nothing and fences nobody, so exactly-once
cannot be shown on it. What it shows is what the client makes of an answer.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import confluent_kafka

FUNCTIONS = (
    "mock_cluster_new", "mock_cluster_destroy", "mock_cluster_bootstraps", "mock_topic_create",
    "mock_push_request_errors", "mock_clear_request_errors", "mock_broker_error_stack_cnt", "mock_broker_set_down",
    "mock_broker_set_up", "mock_group_initial_rebalance_delay_ms", "mock_partition_set_leader",
    "mock_broker_push_request_error_rtts",
)  # fmt: skip
BROKER = 1  # its number
NO_BROKER = -1


class Api(IntEnum):
    """Kafka's numbers of its requests."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    DESCRIBE_GROUPS = 15
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


def library() -> ctypes.CDLL:
    """The library that the Python client uses."""
    (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*.so*")
    return ctypes.CDLL(str(path))


class MockCluster:
    """One broker without topics, at ``address``."""

    def __init__(self) -> None:
        self._library = library()
        for name in ("conf_new", "new", "mock_cluster_new"):
            self._function(name).restype = ctypes.c_void_p
        for name in ("mock_cluster_bootstraps", "err2str"):
            self._function(name).restype = ctypes.c_char_p
        self._function("mock_broker_error_stack_cnt").argtypes = (
            ctypes.c_void_p, ctypes.c_int32, ctypes.c_int16, ctypes.POINTER(ctypes.c_size_t),
        )  # fmt: skip
        config = ctypes.c_void_p(self._call("conf_new"))
        self._call("conf_set", config, b"log_level", b"0", None, ctypes.c_size_t(0))  # it misses its own address
        self._client = ctypes.c_void_p(self._call("new", 0, config, None, ctypes.c_size_t(0)))
        self._cluster = ctypes.c_void_p(self._call("mock_cluster_new", self._client, 1))
        self.address: str = self._call("mock_cluster_bootstraps", self._cluster).decode()
        self._call("mock_group_initial_rebalance_delay_ms", self._cluster, ctypes.c_int32(0))

    def create_topic(self, name: str, partitions: int) -> None:
        self._told("mock_topic_create", name.encode(), partitions, 1)

    def answer(self, api: Api, *errors: int) -> None:
        """The next requests of this kind get these errors in turn (0: none); `KafkaError._TRANSPORT` hangs up."""
        self._call("mock_push_request_errors", self._cluster, ctypes.c_int16(api), ctypes.c_size_t(len(errors)),
                   *(ctypes.c_int(error) for error in errors))  # fmt: skip

    def answer_late(self, api: Api, late_s: float) -> None:
        """The next request of this kind is answered after so long, and then what was asked behind it."""
        self._told("mock_broker_push_request_error_rtts", BROKER, ctypes.c_int16(api), ctypes.c_size_t(1),
                   ctypes.c_int(0), ctypes.c_int(round(late_s * 1_000)))  # fmt: skip

    def clear(self, api: Api) -> None:
        self._call("mock_clear_request_errors", self._cluster, ctypes.c_int16(api))

    def unsaid(self, api: Api) -> int:
        """How many of the pushed errors no request has met yet."""
        count = ctypes.c_size_t()
        self._told("mock_broker_error_stack_cnt", BROKER, ctypes.c_int16(api), ctypes.byref(count))
        return count.value

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """From now on this broker leads the partition, or nobody does."""
        self._told("mock_partition_set_leader", topic.encode(), ctypes.c_int32(partition), ctypes.c_int32(broker))

    def set_down(self) -> None:
        self._told("mock_broker_set_down", BROKER)

    def set_up(self) -> None:
        self._told("mock_broker_set_up", BROKER)

    def close(self) -> None:
        self._call("mock_cluster_destroy", self._cluster)
        self._call("destroy", self._client)

    def _told(self, name: str, *arguments: Any) -> None:
        error = self._call(name, self._cluster, *arguments)
        assert error == 0, f"{name}: {self._call('err2str', error).decode()}"

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._function(name)(*arguments)

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"rd_kafka_{name}")


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    made = MockCluster()
    try:
        yield made
    finally:
        made.close()
