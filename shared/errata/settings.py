"""Settings of the processes: typed, frozen, read once at start, all faults at once; an unknown variable is a fault."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from errata.errors import Misconfigured

PREFIX = "ERRATA_"
TEST_PREFIX = "ERRATA_TEST_"


class EmbeddedSettings(BaseSettings):
    """The whole chain in one process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    data: Path | None = Field(default=None, description="data folder; the platform's folder for user data by default")
    instance: str = Field(default="0", min_length=1, description="name of this process among those of its stage")
    batch_size: int = Field(default=500, ge=1, le=5_000, description="records of one transaction, at most")
    crash: str | None = Field(default=None, description="crash point for tests of recovery: <stage>:<POINT>:<nth>")


def variables() -> dict[str, str]:
    """Every variable errata reads, with its meaning."""
    return {f"{PREFIX}{name.upper()}": field.description or "" for name, field in EmbeddedSettings.model_fields.items()}


def read_settings(environment: Mapping[str, str] | None = None) -> EmbeddedSettings:
    """The settings of the environment. Raises ``Misconfigured`` with every fault, and a guess for unknown names."""
    given = os.environ if environment is None else environment
    known = variables()
    faults = [_unknown(name, known) for name in given if name.startswith(PREFIX) and not _expected(name, known)]
    values = {name.removeprefix(PREFIX).lower(): given[name] for name in known if name in given}
    try:
        settings = EmbeddedSettings.model_validate(values)
    except ValidationError as error:
        faults += [f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
    if faults:
        raise Misconfigured("; ".join(sorted(faults)))
    return settings


def _expected(name: str, known: Mapping[str, str]) -> bool:
    return name in known or name.startswith(TEST_PREFIX)


def _unknown(name: str, known: Mapping[str, str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"{name}: errata knows no such variable" + (f"; did you mean {near[0]}?" if near else "")
