"""Real servers from what the machine has: Kafka, Redis, PostgreSQL, Prometheus and Alertmanager on free loopback ports.

Each is a context manager. They need no container engine and no rights, and on Linux they end with the thread that
started them, also when it is killed. ``port`` fixes the port; without it a free one is taken.
"""

import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from string import Template

from platformdirs import user_cache_path

from errata.errors import Misconfigured, Unavailable
from errata_services.dev.processes import (
    LOOPBACK,
    Child,
    Server,
    end_of,
    find_program,
    free_port,
    listening,
    run_as,
)

__all__ = [
    "KafkaServer",
    "Server",
    "alertmanager",
    "find_alertmanager",
    "kafka",
    "kafka_classpath",
    "postgres",
    "postgres_place",
    "prometheus",
    "redis",
]

JARS_TIMEOUT_S = 600.0  # the first time, Maven fetches 44 MB
TOOL_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 2.0
KAFKA_HEAP_MB = 384
POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin")
SASL_USER = "errata"


@dataclass(frozen=True, slots=True)
class KafkaServer(Server):
    """``address`` takes clients in plain text; the others are empty unless asked for."""

    tls_address: str = ""
    sasl_address: str = ""
    ca_file: Path | None = None
    username: str = SASL_USER
    password: str = field(default="", repr=False)


@contextmanager
def kafka(
    folder: Path,
    *,
    tls: bool = False,
    sasl: bool = False,
    heap_mb: int = KAFKA_HEAP_MB,
    quick: bool = True,
    properties: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[KafkaServer]:
    """One Apache Kafka node (KRaft) with its data in ``folder``; ``properties`` win over server.properties.

    ``tls`` adds an SSL listener, ``sasl`` a SASL_SSL one that takes PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512. ``quick``:
    the JVM compiles for a quick start; else for a broker that stays, which then needs half the CPU for a request.
    """
    folder = made(folder)
    java = find_program("java", "openjdk-17-jre-headless")
    classpath = kafka_classpath()
    port = port or free_port()
    listeners = {"PLAINTEXT": f"{LOOPBACK}:{port}", "CONTROLLER": f"{LOOPBACK}:{free_port()}"}
    listeners |= {name: f"{LOOPBACK}:{free_port()}" for name, on in (("SSL", tls), ("SASL_SSL", sasl)) if on}
    password = secrets.token_hex(16) if sasl else ""
    ca_file, lines = _security(folder, password) if tls or sasl else (None, {})
    config = _write_properties(folder, listeners, lines | dict(properties or {}))
    if not (folder / "data" / "meta.properties").exists():
        _format(java, classpath, config, password)
    command = [
        java, f"-Xmx{heap_mb}m", "-Xms128m", "-XX:+UseSerialGC", *(["-XX:TieredStopAtLevel=1"] if quick else []),
        "-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={kafka_files() / 'log4j2.properties'}",
        "-cp", classpath, "kafka.Kafka", str(config),
    ]  # fmt: skip
    child = Child("kafka", command, folder, ready=partial(ask_kafka, port))
    with child.running_here():
        yield KafkaServer(
            address=listeners["PLAINTEXT"],
            url=f"kafka://{listeners['PLAINTEXT']}",
            folder=folder,
            child=child,
            tls_address=listeners.get("SSL", ""),
            sasl_address=listeners.get("SASL_SSL", ""),
            ca_file=ca_file,
            password=password,
        )


def _write_properties(folder: Path, listeners: Mapping[str, str], lines: Mapping[str, str]) -> Path:
    """The template filled in, and ``lines`` after it: of two values the broker takes the later."""
    template = Template((kafka_files() / "server.properties").read_text(encoding="utf-8"))
    text = template.substitute(
        port=listeners["PLAINTEXT"].rpartition(":")[2],
        controller_port=listeners["CONTROLLER"].rpartition(":")[2],
        data=folder / "data",
    )
    shown = {name: address for name, address in listeners.items() if name != "CONTROLLER"}
    every = {"listeners": _joined(listeners), "advertised.listeners": _joined(shown), **lines}
    config = folder / "server.properties"
    write_private(config, text + "".join(f"{name}={value}\n" for name, value in every.items()))
    return config


def _joined(listeners: Mapping[str, str]) -> str:
    return ",".join(f"{name}://{address}" for name, address in listeners.items())


def kafka_files() -> Path:
    """The folder of pom.xml, server.properties and log4j2.properties: in the wheel, else in the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "kafka", here.parents[3] / "deploy" / "kafka"):
        if (folder / "pom.xml").is_file():
            return folder
    raise Misconfigured("deploy/kafka/pom.xml: neither in the package nor in the checkout; install errata again")


def kafka_classpath() -> str:
    """Kafka's jars for ``java -cp``, resolved by Maven once for each content of the POM."""
    pom = kafka_files() / "pom.xml"
    cache = user_cache_path("errata") / "kafka" / hashlib.sha256(pom.read_bytes()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    resolved = cache / "classpath.txt"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would both write Maven's repository
        if not _complete(resolved):
            _resolve(pom, resolved)
    return resolved.read_text(encoding="utf-8").strip()


def _complete(resolved: Path) -> bool:
    if not resolved.exists():
        return False
    jars = resolved.read_text(encoding="utf-8").strip().split(os.pathsep)
    return all(Path(jar).is_file() for jar in jars)


def _resolve(pom: Path, resolved: Path) -> None:
    mvn = find_program("mvn", "maven")
    fresh = resolved.with_suffix(".new")
    command = [mvn, "-q", "-B", "-f", str(pom), "dependency:build-classpath", f"-Dmdep.outputFile={fresh}"]
    _run_tool("Maven (it fetches Kafka's jars)", command, timeout_s=JARS_TIMEOUT_S)
    fresh.replace(resolved)


def _format(java: str, classpath: str, config: Path, password: str) -> None:
    tool = [java, "-XX:TieredStopAtLevel=1", "-cp", classpath, "kafka.tools.StorageTool"]
    identity = _run_tool("Kafka's StorageTool", [*tool, "random-uuid"]).strip()
    scram: list[str] = []
    if password:
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            scram += ["--add-scram", f"{mechanism}=[name={SASL_USER},password={password}]"]
    _run_tool("Kafka's StorageTool", [*tool, "format", "-t", identity, "-c", str(config), *scram])


def _security(folder: Path, password: str) -> tuple[Path, dict[str, str]]:
    """The certificate authority for clients, and the properties of the listeners with TLS, and with a password SASL."""
    from errata_services.dev.certificates import write_certificates

    ca_file, broker_file = write_certificates(folder, LOOPBACK)
    stores = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(broker_file),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca_file),
    }
    return ca_file, stores | (_sasl_properties(password) if password else {})


def _sasl_properties(password: str) -> dict[str, str]:
    modules = "org.apache.kafka.common.security"
    scram = f"{modules}.scram.ScramLoginModule required;"
    return {
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": (
            f'{modules}.plain.PlainLoginModule required user_{SASL_USER}="{password}";'
        ),
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
    }


def ask_kafka(port: int) -> None:
    from confluent_kafka.admin import AdminClient

    if not listening(port):
        raise ConnectionError("it does not listen yet")
    admin = AdminClient({"bootstrap.servers": f"{LOOPBACK}:{port}", "log_level": 0})
    if not admin.list_topics(timeout=ASK_TIMEOUT_S).brokers:
        raise ConnectionError("its broker is not registered yet")


@contextmanager
def redis(
    folder: Path, *, maxmemory: str = "64mb", policy: str = "noeviction", port: int | None = None
) -> Iterator[Server]:
    """Redis without persistence: it comes back empty, so that tests see what a lost cache does."""
    folder = made(folder)
    port = port or free_port()
    command = [
        find_program("redis-server", "redis-server"), "--port", str(port), "--bind", LOOPBACK, "--dir", str(folder),
        "--save", "", "--appendonly", "no", "--maxmemory", maxmemory, "--maxmemory-policy", policy,
    ]  # fmt: skip
    address = f"{LOOPBACK}:{port}"
    child = Child("redis", command, folder, ready=partial(ask_redis, port))
    with child.running_here():
        yield Server(address=address, url=f"redis://{address}/0", folder=folder, child=child)


def ask_redis(port: int) -> None:
    from redis import Redis

    with Redis(host=LOOPBACK, port=port, socket_timeout=ASK_TIMEOUT_S, socket_connect_timeout=ASK_TIMEOUT_S) as client:
        client.ping()


@contextmanager
def postgres(
    folder: Path, *, durable: bool = False, settings: Mapping[str, str] | None = None, port: int | None = None
) -> Iterator[Server]:
    """PostgreSQL with the superuser and database "errata" and a password of its own, which ``url`` holds.

    It refuses to run as root, so root starts it as user postgres (else nobody), with its data elsewhere when that user
    may not enter ``folder`` (``postgres_place``). Without ``durable`` nothing is synced, and what lies elsewhere goes.
    """
    binaries = sorted((path for pattern in POSTGRES_FOLDERS for path in Path("/").glob(pattern[1:])), reverse=True)
    server, initdb = (find_program(name, "postgresql", binaries) for name in ("postgres", "initdb"))
    folder = made(folder)
    user = _postgres_user()
    place = postgres_place(folder, durable=durable)
    if user:
        _hand_over(place, user)
    port = port or free_port()
    try:
        password = _initialised(initdb, place, user)
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
        }
        if not durable:
            options["fsync"] = "off"  # what was committed survives a kill of the server, not one of the machine
        options |= settings or {}
        command = [server, "-D", str(place / "data"), *(f"--{name}={value}" for name, value in options.items())]
        address = f"{LOOPBACK}:{port}"
        url = f"postgresql://errata:{password}@{address}/errata"
        child = Child(
            "postgres", command, folder, ready=partial(ask_postgres, url), user=user, stop_signal=signal.SIGINT
        )  # SIGINT is its fast shutdown; SIGTERM would wait for every client to leave
        with child.running_here():
            yield Server(address=address, url=url, folder=folder, child=child)
    finally:
        if place != folder and not durable:
            shutil.rmtree(place, ignore_errors=True)


def _postgres_user() -> str:
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise Misconfigured("PostgreSQL does not run as root, and there is no user postgres or nobody; run as another user")


def postgres_place(folder: Path, *, durable: bool) -> Path:
    """Where PostgreSQL's data lies: in ``folder``, unless we are root and its own user may not enter that."""
    folder = folder.resolve()
    if not _postgres_user() or _open_to_all(folder.parent):
        return folder
    name = f"errata-postgres-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    return Path("/var/lib" if durable else "/var/tmp") / name  # noqa: S108  one name for each folder, and its owner is checked


def _hand_over(place: Path, user: str) -> None:
    owner = pwd.getpwnam(user)
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, owner.pw_uid):
        raise Misconfigured(f"{place}: no folder, or somebody else's; remove it")
    os.chown(place, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _open_to_all(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents) if path.exists())


def _initialised(initdb: str, place: Path, user: str) -> str:
    """Make the data folder if there is none; its password."""
    password_file = place / "password"
    if not (place / "data" / "PG_VERSION").exists():
        write_private(password_file, secrets.token_hex(16))
        if user:
            os.chown(password_file, *pwd.getpwnam(user)[2:4])
        command = [
            initdb, "-D", str(place / "data"), "-U", "errata", f"--pwfile={password_file}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        ]  # fmt: skip
        _run_tool("initdb", run_as(user, command), cwd=place)
    return password_file.read_text(encoding="utf-8").strip()


def ask_postgres(url: str) -> None:
    import psycopg
    from psycopg import errors, sql

    try:
        with psycopg.connect(url, connect_timeout=int(ASK_TIMEOUT_S)) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        if 'database "errata" does not exist' not in str(error):
            raise
        root, _, name = url.rpartition("/")
        admin = psycopg.connect(f"{root}/postgres", autocommit=True)
        with admin as connection, suppress(errors.DuplicateDatabase):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


@contextmanager
def prometheus(folder: Path, config: Path, *, flags: Sequence[str] = (), port: int | None = None) -> Iterator[Server]:
    """Prometheus with the configuration file ``config``; first alerts are sent again after 1 s, not after a minute."""
    folder = made(folder)
    port = port or free_port()
    command = [
        find_program("prometheus", "prometheus"), f"--config.file={config.resolve()}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={LOOPBACK}:{port}", "--web.enable-lifecycle",
        "--rules.alert.resend-delay=1s",
        "--log.level=warn", *flags,
    ]  # fmt: skip
    with _http_server("prometheus", command, folder, port) as server:
        yield server


@contextmanager
def alertmanager(folder: Path, config: Path, *, flags: Sequence[str] = (), port: int | None = None) -> Iterator[Server]:
    """Alertmanager with the configuration file ``config``, alone."""
    folder = made(folder)
    port = port or free_port()
    command = [
        find_alertmanager(), f"--config.file={config.resolve()}", f"--storage.path={folder / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}", "--cluster.listen-address=", "--log.level=warn", *flags,
    ]  # fmt: skip
    with _http_server("alertmanager", command, folder, port) as server:
        yield server


def find_alertmanager() -> str:
    """Debian calls it prometheus-alertmanager."""
    return shutil.which("alertmanager") or find_program("prometheus-alertmanager", "prometheus-alertmanager")


@contextmanager
def _http_server(name: str, command: Sequence[str], folder: Path, port: int) -> Iterator[Server]:
    address = f"{LOOPBACK}:{port}"
    child = Child(name, command, folder, ready=partial(ask_http, port))
    with child.running_here():
        yield Server(address=address, url=f"http://{address}", folder=folder, child=child)


def ask_http(port: int) -> None:
    connection = HTTPConnection(LOOPBACK, port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/-/ready")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise ConnectionError(f"/-/ready answers {status}")


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _run_tool(name: str, command: Sequence[str], *, cwd: Path | None = None, timeout_s: float = TOOL_TIMEOUT_S) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} was not done within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{name} failed: {end_of(done.stdout + done.stderr)}")
    return done.stdout
