"""Who may import whom, and what lies where: the source is parsed, so that imports inside functions count as well."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"common", "gateway", "worker", "launch"}
MAY_IMPORT = {"common": {"common"}, "gateway": {"common", "gateway"}, "worker": {"common", "worker"}, "launch": OURS}
FOREIGN = {  # what a package must never load, not even through others
    "common": {"torch", "transformers", "starlette"},
    "gateway": {"torch", "transformers"},
    "worker": {"starlette", "uvicorn", "sse_starlette", "transformers"},
    "launch": {"torch", "transformers"},
}
# What some commands use where it is there: plots; the GPU's benchmark and kernels.
OPTIONAL = {"matplotlib", "transformers", "triton"}
BENCHES = ROOT / "launch" / "bench"  # They may measure what others must not load, when they run.
FOLDERS = {".ci", "common", "docs", "gateway", "launch", "tests", "worker"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield node.module


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_imports_only_those_of_ours_that_it_may(package: str) -> None:
    wrong = {str(path): names for path in sources(package) if (names := packages(path) & OURS - MAY_IMPORT[package])}
    assert not wrong


@pytest.mark.parametrize("package", sorted(OURS))
def test_a_package_keeps_out_of_what_belongs_to_the_other_side(package: str) -> None:
    judged = [path for path in sources(package) if not path.is_relative_to(BENCHES)]
    wrong = {str(path): names for path in judged if (names := packages(path) & FOREIGN[package])}
    assert not wrong


def test_all_that_is_imported_is_installed_with_us() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normalized(re.split(r"[^\w.-]", line)[0]) for line in project["dependencies"]}
    known = sys.stdlib_module_names | OURS | OPTIONAL
    imported = set().union(*(packages(path) for package in OURS for path in sources(package))) - known
    brought_by = packages_distributions()
    assert not {name for name in imported if declared.isdisjoint(map(normalized, brought_by.get(name, [])))}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_a_command_line_loads_no_torch() -> None:
    code = "import sys, launch.cli; print(*{'torch', 'transformers'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_one_file_imports_mpi4py() -> None:
    users = [path for package in OURS for path in sources(package) if "mpi4py" in packages(path)]
    assert users == [ROOT / "common" / "mpi.py"]


def test_nothing_is_pickled() -> None:
    picklers = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert not [path for package in OURS for path in sources(package) if packages(path) & picklers]


@pytest.mark.parametrize("package", sorted(OURS - {"launch"}))
def test_only_launch_prints(package: str) -> None:
    printing = [
        f"{path}:{node.lineno}"
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_scheduling_reads_no_clock_and_draws_no_random_number() -> None:
    impure = {"time", "datetime", "random", "secrets", "asyncio", "threading", "socket", "os", "pathlib"}
    wrong = {str(path): names for path in sources("gateway/scheduling") if (names := packages(path) & impure)}
    assert not wrong


@pytest.mark.parametrize(
    ("module", "absent"),
    [("launch.gateway_rank", ["torch", "transformers", "mpi4py"]), ("worker.loop", ["starlette", "uvicorn", "mpi4py"])],
)
def test_a_rank_does_not_even_indirectly_load_what_the_other_side_needs(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*{set(absent)} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_folders_are_the_ones_that_were_agreed_on() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.partition("/")[0] for line in tracked.splitlines() if "/" in line} <= FOLDERS
    assert not [
        line for line in tracked.splitlines() if line.startswith("tests/") and "/test_" in line[len("tests/") :]
    ]


def test_every_module_says_what_it_is() -> None:
    silent = [
        path for package in OURS for path in sources(package) if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent
