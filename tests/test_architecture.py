"""Who may import whom, read from the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "netgraft").rglob("*.py"))
SOURCES = [*FILES, *sorted((ROOT / "cli").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

# A module imports from the layers above its own line only; the files of one package may import each other.
LAYERS = (
    {"errors"},
    {"graphs", "layouts", "survey", "tracing"},
    {"crossings"},
    {"cuts", "extraction"},
    {"modes"},
    {
        "archives",
        "assets",
        "batches",
        "blocks",
        "connectors",
        "dense",
        "files",
        "hyperparameters",
        "layers",
        "losses",
        "memory",
        "metrics",
        "padding",
        "precision",
        "reporting",
        "views",
        "zoo",
    },
    {"bridges"},
    {"adapters"},
    {
        "checkpoint",
        "data",
        "folding",
        "freezing",
        "metrics_log",
        "models",
        "pairing",
        "reporters",
        "run_folder",
        "subsets",
    },
    {"caching", "grafting", "phases", "slicing", "students"},
    {"lanes", "methods", "network", "optimization", "training"},
    {"runner"},
    {"api", "evaluation"},
    {"jobs"},
    {"benchmark"},
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# What the layers would allow, and what would still mix up two concerns.
FORBIDDEN = {
    "methods": {
        "caching",
        "checkpoint",
        "data",
        "metrics",
        "models",
        "reporters",
        "reporting",
        "run_folder",
        "students",
    },
    "runner": {"data", "losses", "models", "students"},
    "grafting": {"data", "losses", "models", "reporting", "views"},
    "losses": {"blocks", "metrics"},
}

# Third-party packages of the modules that anybody could use in a program of their own.
PORTABLE = {
    "adapters": {"torch"},
    "batches": {"torch"},
    "blocks": {"torch"},
    "bridges": {"torch"},
    "caching": {"torch"},
    "checkpoint": {"torch"},
    "connectors": {"torch"},
    "crossings": {"torch"},
    "cuts": {"torch"},
    "dense": {"torch"},
    "extraction": {"torch"},
    "files": set(),
    "freezing": {"timm", "torch"},
    "folding": {"timm", "torch"},
    "grafting": {"torch"},
    "graphs": {"torch"},
    "hyperparameters": set(),
    "lanes": {"torch"},
    "layers": {"torch"},
    "layouts": {"torch"},
    "losses": {"torch"},
    "methods": {"torch"},
    "memory": {"torch"},
    "metrics": {"torch"},
    "metrics_log": set(),
    "modes": {"torch"},
    "network": {"torch"},
    "optimization": {"torch"},
    "padding": {"torch"},
    "pairing": {"torch"},
    "phases": {"torch"},
    "precision": {"torch"},
    "slicing": {"torch"},
    "subsets": set(),
    "survey": {"torch"},
    "tracing": {"timm", "torch"},
}

# Packages that are kept in one place.
ONLY_IN = {
    "click": {"cli"},
    "lightning_fabric": {"runner"},
    "rich": {"cli", "reporters"},
    "sklearn": {"benchmarks", "data"},
}


def imports(path: Path) -> Iterator[str]:
    """Every imported module, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # "from netgraft import x" may name a module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(path: Path) -> str:
    """The module or package right below the top, by which the rules name things."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "netgraft" else parts[0]


def project_units(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("netgraft.")}
    return names - {"__version__", unit(path)}


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"netgraft"}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) != "__init__"], ids=ids)
def test_imports_go_up_the_layers(path: Path) -> None:
    mine = unit(path)
    assert mine in RANK, f"give {mine} a place in LAYERS"
    same_or_lower = {other for other in project_units(path) if other == "cli" or RANK[other] >= RANK[mine]}
    assert not same_or_lower, f"{mine} imports {same_or_lower} from its own layer or from one below"
    assert not project_units(path) & FORBIDDEN.get(mine, set())
    if mine in PORTABLE:
        assert third_party(path) <= PORTABLE[mine]


@pytest.mark.parametrize("package", ONLY_IN)
def test_some_packages_stay_in_one_place(package: str) -> None:
    users = {unit(path) for path in SOURCES if package in third_party(path)}
    assert users <= ONLY_IN[package]
    assert users, "a rule about a package that nobody imports"


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_every_file_is_documented_and_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # cli/__init__.py and the like may be empty
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module says in its first line what it is for"
    assert len(text.splitlines()) <= 400
    assert path.name not in {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_nothing_unpickles(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("weights_only") == "True"


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, netgraft; print([m for m in ('torch', 'timm', 'numpy', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import netgraft

    assert dir(netgraft) == sorted(netgraft.__all__)
    for name in netgraft.__all__:
        assert getattr(netgraft, name).__name__ == name
    with pytest.raises(AttributeError, match="netgraft has no 'nothing'"):
        _ = netgraft.nothing
