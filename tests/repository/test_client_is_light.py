"""``import errata.client`` runs inside other people's services: it loads next to nothing and takes next to no time."""

import json
import subprocess
import sys
from statistics import median

BUDGET_S = 0.080  # CPU time beyond bare Python
HEAVY = {"pydantic", "numpy", "msgspec", "sqlalchemy", "cryptography", "yaml", "rich", "typer", "structlog"}

REPORT = "import json, sys, time; print(json.dumps([sorted({name.split('.')[0] for name in sys.modules}), CPU]))"


def imported(statement: str) -> tuple[set[str], float]:
    """Top-level modules after ``statement`` in a fresh process, and the CPU seconds it took by itself."""
    code = f"import time; start = time.process_time(); {statement}; CPU = time.process_time() - start; {REPORT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, cpu_s = json.loads(done.stdout)
    return set(modules), cpu_s


def test_client_loads_the_standard_library_only() -> None:
    modules, _ = imported("import errata.client")
    assert not modules & HEAVY
    bare, _ = imported("pass")
    assert modules - bare - sys.stdlib_module_names == {"errata"}


def test_control_the_contracts_would_be_noticed() -> None:
    modules, _ = imported("import errata.contracts")
    assert "pydantic" in modules


def test_client_is_imported_in_no_time() -> None:
    assert median(imported("import errata.client")[1] for _ in range(5)) < BUDGET_S
