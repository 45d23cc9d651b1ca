"""The scripts by which compose.yaml prepares PostgreSQL, on a real one, with passwords from make_secrets.sh."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest
from tests.integration.conftest import missing

from errata_services.dev import servers

pytestmark = pytest.mark.servers

DEPLOY = Path(__file__).parents[2] / "deploy"


def run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_owner_writer_and_keeper_log_in_with_their_secrets(tmp_path: Path) -> None:
    if shutil.which("psql") is None:
        missing("not installed: psql (Debian: apt-get install postgresql-client)")
    secrets = tmp_path / "secrets"
    run(["sh", str(DEPLOY / "make_secrets.sh"), str(secrets)], {})
    with servers.postgres(tmp_path / "postgres") as server:  # roles belong to the whole server, so it is our own
        user, _, rest = server.url.removeprefix("postgresql://").partition(":")
        password = rest.partition("@")[0]
        host, _, port = server.address.partition(":")
        image = {"POSTGRES_USER": user, "POSTGRES_DB": "errata", "SECRETS": str(secrets)}
        image |= {"PGHOST": host, "PGPORT": port, "PGPASSWORD": password}
        roles = DEPLOY / "postgres" / "roles.sql"
        run(["psql", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", "errata", "-f", str(roles)], image)
        run(["sh", str(DEPLOY / "postgres" / "passwords.sh")], image)
        for role in ("owner", "writer", "keeper"):
            url = (secrets / f"{role}_url").read_text().replace("@postgres:5432", f"@{server.address}")
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT current_user").fetchone() == (f"errata_{role}",)
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(url.replace("@", "x@"), connect_timeout=2)
        with psycopg.connect(url) as keeper, pytest.raises(psycopg.errors.InsufficientPrivilege):
            keeper.execute("CREATE TABLE public.its_own (n int)")
