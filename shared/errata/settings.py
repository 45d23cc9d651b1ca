"""Settings of the processes: typed, frozen, read once at start, all faults at once; an unknown variable is a fault.

Secrets may stand in files: ``ERRATA_DATABASE_URL_FILE=/run/secrets/url`` gives ``ERRATA_DATABASE_URL`` the file's text.
"""

import os
import re
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from errata.errors import Misconfigured

PREFIX = "ERRATA_"
TEST_PREFIX = "ERRATA_TEST_"
KAFKA_PREFIX = "ERRATA_KAFKA__"
FILE_SUFFIX = "_FILE"
REPLICATION = "replication"  # ours, not the client's: of topics that `errata topics apply` makes
DEFAULT_PORT = 9464

_NAME = r"^[A-Za-z0-9._-]+$"


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    instance: str = Field(
        default="0",
        min_length=1,
        max_length=64,
        pattern=_NAME,
        description="name of this process among those of its stage; for a service the ordinal of its host name, else 0",
    )
    state_mib: int = Field(
        default=256,
        ge=4,
        le=16_384,
        description="state of a partition of the anomaly-detector, in MiB, at most; then the models not seen for"
        " longest are given up",
    )
    crash: str | None = Field(default=None, description="crash point for tests of recovery: <stage>:<POINT>:<nth>")


class EmbeddedSettings(_Settings):
    """The whole chain in one process."""

    data: Path | None = Field(default=None, description="data folder; the platform's folder for user data by default")
    batch_size: int = Field(
        default=500,
        ge=1,
        le=5_000,
        description="records of one transaction, at most; 5,000 for a service, 500 embedded",
    )


class ServiceSettings(_Settings):
    """One stage of the chain as a process of its own."""

    batch_size: int = Field(
        default=5_000, ge=1, le=5_000, description=EmbeddedSettings.model_fields["batch_size"].description
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=100,
        description="stands before the names of topics, groups and transactional ids",
    )
    redis_url: SecretStr | None = Field(default=None, description="Redis of the enricher: redis://host:6379/0")
    database_url: SecretStr | None = Field(
        default=None, description="PostgreSQL of the catalogue: postgresql://user:password@host/database"
    )
    key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="secret of redaction and of dead letters, at least 32 characters; the same for all processes",
    )
    http_host: str = Field(default="127.0.0.1", description="address that health and metrics listen on")
    http_port: int = Field(default=DEFAULT_PORT, ge=0, le=65_535, description="port of health and metrics; 0: none")
    log: Literal["auto", "json", "console"] = Field(
        default="auto", description="form of log lines; auto: json unless on a terminal"
    )
    tick_every_s: float = Field(
        default=60.0, ge=1, le=300, description="seconds between two ticks of the keeper, by which windows close"
    )
    heartbeat_every_s: float = Field(
        default=10.0, ge=1, le=300, description="seconds between two heartbeats of the keeper"
    )
    on_rewind: Literal["stop", "rebuild"] = Field(
        default="stop",
        description="what the anomaly-detector does when its group was set back behind its state: stop, or make the"
        " state anew from the 7 days of input before",
    )
    leave: bool = Field(
        default=False,
        description="whether a service that is stopped tells its group, so that others take over at once",
    )
    stall_s: float = Field(
        default=90.0,
        ge=0,
        le=86_400,
        description="seconds that a partition with records before it, or the loop, may stand still before the service"
        " ends with 75 to be started again; its stacks are logged after half of them; 0: never",
    )
    kafka: dict[str, str] = Field(default_factory=dict, repr=False)

    @property
    def bootstrap(self) -> str | None:
        return self.kafka.get("bootstrap.servers")


Kind = TypeVar("Kind", EmbeddedSettings, ServiceSettings)
_SECRETS = tuple(name for name, field in ServiceSettings.model_fields.items() if field.annotation == (SecretStr | None))


def ordinal_of(host: str) -> str:
    """The number at the end of the name of a StatefulSet's host, else 0.

    >>> ordinal_of("tagger-12"), ordinal_of("laptop")
    ('12', '0')
    """
    found = re.search(r"-(\d+)$", host)
    return found[1] if found else "0"


def variables() -> dict[str, str]:
    """Every variable errata reads, with its meaning."""
    fields = {**EmbeddedSettings.model_fields, **ServiceSettings.model_fields}
    fields.pop("kafka")
    return {f"{PREFIX}{name.upper()}": field.description or "" for name, field in fields.items()} | {
        f"{KAFKA_PREFIX}…": "any property of librdkafka, dots as underscores: ERRATA_KAFKA__BOOTSTRAP_SERVERS",
        f"{KAFKA_PREFIX}REPLICATION": "replication of topics that are made: auto (the brokers, at most 3) or a number",
    }


def read_settings(environment: Mapping[str, str] | None = None) -> EmbeddedSettings:
    """The settings of an embedded run. Raises ``Misconfigured`` with every fault, and a guess for unknown names."""
    return _read(EmbeddedSettings, os.environ if environment is None else environment)


def read_service_settings(environment: Mapping[str, str] | None = None) -> ServiceSettings:
    """As `read_settings`, of a service."""
    return _read(ServiceSettings, os.environ if environment is None else environment)


def _read(kind: type[Kind], given: Mapping[str, str]) -> Kind:
    known = set(variables()) | {f"{PREFIX}{name.upper()}{FILE_SUFFIX}" for name in _SECRETS}
    faults = [_unknown(name, known) for name in given if name.startswith(PREFIX) and not _expected(name, known)]
    values: dict[str, object] = {}
    if kind is ServiceSettings:
        values = {"instance": ordinal_of(socket.gethostname()), "kafka": _kafka(given, faults)}
    for name in kind.model_fields:
        text = _text_of(f"{PREFIX}{name.upper()}", given, faults, in_file=name in _SECRETS)
        if text is not None:
            values[name] = text
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        faults += [f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
    if faults:
        raise Misconfigured("; ".join(sorted(faults)))
    return settings


def _kafka(given: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    """Properties of the Kafka client from variables: underscores are dots, and a file may hold the value."""
    names = {name.removesuffix(FILE_SUFFIX) for name in given if name.startswith(KAFKA_PREFIX)}
    found = {name: _text_of(name, given, faults, in_file=True) for name in sorted(names)}
    return {
        name.removeprefix(KAFKA_PREFIX).lower().replace("_", "."): text
        for name, text in found.items()
        if text is not None
    }


def _text_of(name: str, given: Mapping[str, str], faults: list[str], *, in_file: bool) -> str | None:
    place = given.get(name + FILE_SUFFIX) if in_file else None
    if place is None:
        return given.get(name)
    if name in given:
        faults.append(f"{name}: given twice, as a value and as a file; keep one")
    try:
        return Path(place).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        faults.append(f"{name}{FILE_SUFFIX}: the file cannot be read; name a text file this user may read")
        return None


def _expected(name: str, known: set[str]) -> bool:
    return name in known or name.startswith((TEST_PREFIX, KAFKA_PREFIX))


def _unknown(name: str, known: set[str]) -> str:
    bare = {one.removeprefix(PREFIX): one for one in known}
    near = get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    guess = bare[near[0]] if near else None
    if name.startswith(KAFKA_PREFIX[:-1]):
        guess = KAFKA_PREFIX + name.removeprefix(KAFKA_PREFIX[:-1])
    return f"{name}: errata knows no such variable" + (f"; did you mean {guess}?" if guess else "")
