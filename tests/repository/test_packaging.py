"""The wheel holds what it must and nothing else, and lives beside a publisher's own ``shared`` and ``services``."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest

import errata

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
NOT_HERE = ("No solution found", "not found in the cache", "network was disabled", "Failed to resolve requirements")


def _run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def _skip_loudly(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _build_command(out: Path) -> list[str] | None:
    """How to build a wheel without the network, if this machine can."""
    if importlib.util.find_spec("hatchling"):
        return [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    uv = shutil.which("uv")
    return [uv, "build", "--wheel", "--offline", "--out-dir", str(out), "--python", sys.executable] if uv else None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = _build_command(out)
    if command is None:
        _skip_loudly("neither hatchling nor uv is here: the wheel cannot be built and was NOT checked")
    built = _run(command, ROOT)
    if built.returncode and any(sign in built.stderr for sign in NOT_HERE):
        _skip_loudly("hatchling is not in uv's cache: the wheel cannot be built offline and was NOT checked")
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer would do it."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def _files(folder: Path, under: str) -> set[str]:
    return {
        f"{under}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_exactly_the_two_packages_and_the_schemas(installed: Path) -> None:
    about = f"errata-{errata.__version__}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"errata", "errata_services", about}
    wanted = (
        _files(ROOT / "shared" / "errata", "errata")
        | _files(ROOT / "services" / "errata_services", "errata_services")
        | _files(ROOT / "schemas", "errata/_schemas")
        | _files(ROOT / "deploy" / "kafka", "errata_services/dev/kafka")
    )
    packed = _files(installed, "")
    assert {name.lstrip("/") for name in packed if about not in name} == wanted
    assert "errata/_schemas/prediction-event.schema.json" in wanted


def test_wheel_says_what_it_is(installed: Path) -> None:
    about = installed / f"errata-{errata.__version__}.dist-info"
    metadata = (about / "METADATA").read_text(encoding="utf-8")
    assert "\nName: errata\n" in metadata
    assert f"\nVersion: {errata.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "errata = errata_services.cli:main" in (about / "entry_points.txt").read_text(encoding="utf-8")
    assert (about / "licenses" / "LICENSE").is_file()
    assert (installed / "errata" / "py.typed").is_file()


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    """A publisher's project, which has packages of its own named like our folders."""
    for name in ("shared", "services"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("", encoding="utf-8")
        (tmp_path / name / "client.py").write_text(f"WHOSE = 'the publisher, {name}'\n", encoding="utf-8")
    return tmp_path


def _python(project: Path, site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in the project with the wheel and the standard library, and with no other package (``-S``)."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(project), str(site)))}
    return _run([sys.executable, "-S", "-W", "error", "-c", code], project, env)


def test_a_publisher_keeps_its_own_shared_and_services(publisher: Path, installed: Path) -> None:
    code = (
        "import errata.client, shared.client, services.client\n"
        "print(errata.client.__file__, shared.client.WHOSE, services.client.WHOSE, sep='\\n')"
    )
    done = _python(publisher, installed, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(installed / "errata" / "client.py")
        if (installed / "errata" / "client.py").exists()
        else str(installed / "errata" / "client" / "__init__.py"),
        "the publisher, shared",
        "the publisher, services",
    ]


def test_the_client_needs_nothing_but_python(publisher: Path, installed: Path) -> None:
    code = "import sys, errata.client\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = _python(publisher, installed, code)
    assert done.returncode == 0, done.stderr
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "errata"}
    assert {name for name in foreign if not name.startswith("_")} == set()


def test_there_is_no_other_package_to_hide_behind(publisher: Path, installed: Path) -> None:
    done = _python(publisher, installed, "import errata.contracts")
    assert done.returncode == 1
    assert "No module named 'pydantic'" in done.stderr
