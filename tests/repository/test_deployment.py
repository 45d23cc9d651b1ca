"""The image and the compose file: what they must hold, without an engine."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from tests.repository.test_documented import COMMANDS
from typer.testing import CliRunner

from errata.contracts.topics import STAGES, TRENDS_SERVICE
from errata.errors import Misconfigured
from errata.runtime.telemetry import KEEPER
from errata.settings import read_service_settings
from errata_services.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_FILE = DEPLOY / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile; continued lines are one."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last(name: str) -> str:
    return [rest for word, rest in instructions(DOCKERFILE) if word == name][-1]


# The image.


def test_the_base_is_pinned_and_an_argument() -> None:
    assert "# syntax" not in DOCKERFILE
    found = re.fullmatch(r"PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+", instructions(DOCKERFILE)[0][1])
    assert found, "a base that is pinned to the patch"
    stages = [rest for word, rest in instructions(DOCKERFILE) if word == "FROM"]
    assert stages == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    user = re.fullmatch(r"(\d+):(\d+)", last("USER"))
    assert user
    assert "0" not in user.groups()
    for service in OURS.values():
        assert service["user"] == last("USER")


def test_the_image_is_the_command_and_gets_its_signals() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["errata"]  # a list: no shell between it and SIGTERM
    assert last("STOPSIGNAL") == "SIGTERM"
    health = last("HEALTHCHECK")
    assert "/livez" in health
    check = json.loads(health.partition("CMD ")[2])
    assert check[0] == "python"
    compile(check[-1], "HEALTHCHECK", "exec")
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", last("LABEL")))
    assert labels >= {"title", "description", "licenses", "version", "revision"}


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_sees_whether_it_lives(status: int, code: int) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    _, *words = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        answering = Thread(target=server.handle_request)
        answering.start()
        environment = {"ERRATA_HTTP_PORT": str(server.server_port)}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
        answering.join()
    assert done.returncode == code, done.stderr


def test_what_the_wheel_is_made_of_comes_into_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = {Path(package).parts[0] for package in wheel["packages"]} | set(wheel["force-include"])
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "uv.lock"}
    copied = {word for name, rest in instructions(DOCKERFILE) if name == "COPY" for word in rest.split()[:-1]}
    assert folders | files <= copied
    assert {f"!{name}" for name in folders | files} <= set(IGNORED)
    assert IGNORED[1] == "*"  # and nothing else does


# Compose.


def test_the_compose_file_is_one_to_docker() -> None:
    """Docker's own opinion, where it has one: a client without its compose plug-in is common."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = [docker, "compose", "--file", str(COMPOSE_FILE), "--profile", "monitoring", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert set(COMPOSE) - {key for key in COMPOSE if key.startswith("x-")} == {"name", "services", "volumes", "secrets"}


def test_every_stage_has_its_service_and_every_command_can_be_typed() -> None:
    for stage in (*STAGES, TRENDS_SERVICE, KEEPER):
        assert OURS[stage]["command"] == ["run", stage]
    for service in OURS.values():
        words = " ".join(["errata", *service["command"]])
        assert any(words == command or words.startswith(f"{command} ") for command in COMMANDS), words
        assert understood(service["command"]), words
    assert not understood(["cases", "list", "--unheard-of", "x"])


def understood(words: list[str]) -> bool:
    """Whether the command line knows these options; with --help it does nothing else."""
    return CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_has_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(str(service["user"]).split(":")[0]) > 0
    assert service["read_only"] is (name != "kafka")
    assert "privileged" not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    for volume in service.get("volumes", []):
        if volume.startswith("."):
            assert volume.endswith(":ro"), volume
            assert (DEPLOY / volume.split(":")[0]).exists(), volume
        else:
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
        else:
            assert service["image"] == "${IMAGE:-errata:local}"


@pytest.mark.parametrize("name", sorted(OURS))
def test_services_are_given_settings_that_they_know(name: str, tmp_path: Path) -> None:
    environment = dict(OURS[name]["environment"])
    secrets = set()
    for variable, value in environment.items():
        if variable.endswith("_FILE"):
            secrets.add(value.removeprefix("/run/secrets/"))
            file = tmp_path / variable
            file.write_text("postgresql://somebody:something@postgres:5432/errata")
            environment[variable] = str(file)
    assert secrets == set(OURS[name].get("secrets", []))
    assert secrets <= set(COMPOSE["secrets"])
    read_service_settings(environment)
    with pytest.raises(Misconfigured, match="ERRATA_UNHEARD_OF"):
        read_service_settings(environment | {"ERRATA_UNHEARD_OF": "1"})


def having(given: Mapping[str, set[str]], variable: str) -> set[str]:
    return {name for name, variables in given.items() if variable in variables}


def test_services_get_what_they_need_and_no_more() -> None:
    given = {name: set(service["environment"]) for name, service in OURS.items()}
    for stage in STAGES:
        assert {"ERRATA_KAFKA__BOOTSTRAP_SERVERS", "ERRATA_INSTANCE", "ERRATA_KEY_FILE"} <= given[stage]
    having = {
        variable: {name for name in given if variable in given[name]} for variable in set().union(*given.values())
    }
    assert having["ERRATA_REDIS_URL"] == {"enricher"}
    assert having["ERRATA_DATABASE_URL_FILE"] == {"catalog-writer", "catalogue", "keeper"}
    assert having["ERRATA_KEY_FILE"] == {*STAGES, TRENDS_SERVICE}  # which seal dead letters
    assert OURS["keeper"]["secrets"] == ["keeper_url"]  # it may see no table
    assert OURS["catalog-writer"]["secrets"] == ["key", "writer_url"]  # it may change rows, no table
    assert OURS["catalogue"]["secrets"] == ["owner_url"]
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    assert not re.search(r"(?i)(password|secret|key)[A-Z_]*:\s*['\"]?[a-z0-9]{6,}", text)


def test_services_wait_for_what_they_need() -> None:
    for stage in STAGES:
        waits = {name: wait["condition"] for name, wait in OURS[stage]["depends_on"].items()}
        assert waits.pop("topics") == "service_completed_successfully"
        if stage == "catalog-writer":
            assert waits.pop("catalogue") == "service_completed_successfully"
        assert set(waits.values()) == {"service_healthy"}
        for name in waits:
            assert SERVICES[name]["healthcheck"]["test"], name
    assert "redis" in OURS["enricher"]["depends_on"]
    assert "postgres" in OURS["catalog-writer"]["depends_on"]
    assert {"postgres", "topics"} <= set(OURS[KEEPER]["depends_on"])


def test_monitoring_is_a_profile_and_the_chain_is_none() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    monitoring = {"prometheus", "alertmanager", "grafana"}
    assert {name for name, given in profiles.items() if given == ["monitoring"]} == monitoring
    assert {name for name, given in profiles.items() if given is None} == set(SERVICES) - monitoring


def test_prometheus_asks_the_services_where_they_answer() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "errata")
    targets = {target["labels"]["stage"]: target["targets"] for target in job["static_configs"]}
    ports = {stage: OURS[stage]["environment"]["ERRATA_HTTP_PORT"] for stage in (*STAGES, TRENDS_SERVICE, KEEPER)}
    assert targets == {stage: [f"{stage}:{port}"] for stage, port in ports.items()}
    assert last("EXPOSE") in ports.values()


def test_secrets_are_drawn_once_and_fit_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    command = ["sh", str(DEPLOY / "make_secrets.sh"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    drawn = {file.name: file.read_text() for file in folder.iterdir() if file.name != ".gitignore"}
    assert set(drawn) == set(COMPOSE["secrets"]) == {Path(one["file"]).name for one in COMPOSE["secrets"].values()}
    for role in ("owner", "writer", "keeper"):
        password = drawn[f"{role}_password"]
        assert len(password) == 64
        assert drawn[f"{role}_url"] == f"postgresql://errata_{role}:{password}@postgres:5432/errata"
    assert len(set(drawn.values())) == len(drawn)
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / ".gitignore").read_text() == "*\n"
    subprocess.run(command, check=True, capture_output=True)
    assert drawn == {file.name: file.read_text() for file in folder.iterdir() if file.name != ".gitignore"}
