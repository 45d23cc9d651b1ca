"""Three Kafka nodes on loopback, each broker and controller: two are a majority of everything."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from confluent_kafka.admin import AdminClient

from errata_services.dev import servers
from errata_services.dev.processes import LOOPBACK, Child, find_program, free_port, listening
from errata_services.dev.servers import kafka_classpath, kafka_files, write_private

NODES = 3
HEAP_MB = 384
STARTS_S = 90.0
TOOL_S = 60.0
ASK_S = 3.0


@dataclass
class Cluster:
    """``address`` names all nodes; ``nodes`` are by their id less one."""

    address: str
    nodes: list[Child]

    def leaders(self, topic: str) -> dict[int, int]:
        """The node that leads each partition of a topic, by index in ``nodes``; -1 for none."""
        found = self._ask().list_topics(topic, timeout=ASK_S).topics[topic]
        return {number: one.leader - 1 if one.leader > 0 else -1 for number, one in found.partitions.items()}

    def in_sync(self, topic: str) -> int:
        """Of the partition that has the fewest, how many replicas are in sync."""
        found = self._ask().list_topics(topic, timeout=ASK_S).topics[topic]
        return min(len(one.isrs) for one in found.partitions.values())

    def _ask(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})


@contextmanager
def three_nodes(folder: Path) -> Iterator[Cluster]:
    """Started together: a majority has to be there before the first one answers."""
    java, classpath = find_program("java", "openjdk-17-jre-headless"), kafka_classpath()
    ports = [(free_port(), free_port()) for _ in range(NODES)]
    voters = ",".join(f"{at + 1}@{LOOPBACK}:{controller}" for at, (_, controller) in enumerate(ports))
    configs = [_config(folder, at, voters, *pair) for at, pair in enumerate(ports)]
    identity = _tool(java, classpath, "random-uuid").strip().splitlines()[-1]
    for config in configs:
        _tool(java, classpath, "format", "-t", identity, "-c", str(config))
    nodes = [_node(java, classpath, config, port) for config, (port, _) in zip(configs, ports, strict=True)]
    with ExitStack() as stack, ThreadPoolExecutor(NODES) as pool:
        # A child ends with the thread that started it, so these threads stay until the block ends.
        for node in nodes:
            stack.callback(node.stop)
        list(pool.map(Child.start, nodes))
        yield Cluster(",".join(f"{LOOPBACK}:{port}" for port, _ in ports), nodes)


def _config(folder: Path, at: int, voters: str, port: int, controller: int) -> Path:
    """The lines of a single node, and after them ours: of two values the broker takes the later."""
    place = servers.made(folder / f"node-{at + 1}")
    text = (kafka_files() / "server.properties").read_text(encoding="utf-8")
    text = text.replace("${port}", str(port)).replace("${controller_port}", str(controller))
    text = text.replace("${data}", str(place / "data"))
    own: Mapping[str, str] = {
        "node.id": str(at + 1),
        "controller.quorum.voters": voters,
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "replica.lag.time.max.ms": "10000",
    }
    config = place / "server.properties"
    write_private(config, text + "".join(f"{name}={value}\n" for name, value in own.items()))
    return config


def _tool(java: str, classpath: str, *words: str) -> str:
    command = [java, "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool", *words]
    return servers._run_tool("Kafka's StorageTool", command, timeout_s=TOOL_S)


def _node(java: str, classpath: str, config: Path, port: int) -> Child:
    command = [
        java, f"-Xmx{HEAP_MB}m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={kafka_files() / 'log4j2.properties'}",
        "-cp", classpath, "kafka.Kafka", str(config),
    ]  # fmt: skip
    return Child("kafka", command, config.parent, ready=partial(_ready, port), ready_timeout_s=STARTS_S)


def _ready(port: int) -> None:
    if not listening(port):
        raise ConnectionError("it does not listen yet")
    admin = AdminClient({"bootstrap.servers": f"{LOOPBACK}:{port}", "log_level": 0})
    if len(admin.list_topics(timeout=ASK_S).brokers) < NODES - 1:
        raise ConnectionError("it knows of too few nodes")
