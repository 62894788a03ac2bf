"""The layout that programs started by their path need: no module replaces a library, scripts are thin."""

import ast
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "models", "training", "hpo", "ensembles")
OURS = (*PACKAGES, "tests", "benchmarks", "docs")
FILES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def is_python(path):
    try:
        ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return False
    return True


SOURCES = [path for path in FILES if is_python(path)]
NAMED = {path: str(path.relative_to(ROOT)) for path in SOURCES}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


SCRIPTS = [path for path in SOURCES if any(is_main_guard(node) for node in tree_of(path).body)]
PROGRAMS = [path for path in SCRIPTS if path.relative_to(ROOT).parts[0] in PACKAGES]


@cache
def libraries():
    """Top-level modules of all distributions that the project needs at run time, however far away."""
    needed, waiting = set(), {"striate"}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        try:
            wanted = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting |= {
            canonicalize_name(one.name)
            for one in wanted
            # Extras of extras are rare, and taking too many of them only forbids more names.
            if "extra ==" not in str(one.marker) or name == "ray"
        } - needed
    return {
        module
        for module, distributions in packages_distributions().items()
        if needed & {canonicalize_name(distribution) for distribution in distributions}
    } - set(PACKAGES)


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_is_python_of_the_oldest_version_we_support():
    assert [str(path) for path in FILES if path not in SOURCES] == []


def test_there_are_scripts_to_look_at():
    found = {NAMED[path] for path in PROGRAMS}
    assert {"training/train.py", "hpo/search.py", "data/convert.py", "data/simulate.py"} <= found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: NAMED[path])
def test_nothing_beside_a_script_has_the_name_of_a_library(script):
    # Python puts the script's own folder first on sys.path, before the standard library.
    beside = {path.stem for path in script.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert beside & (set(sys.stdlib_module_names) | libraries()) - {"__pycache__", "__init__"} == set()


def test_the_libraries_are_found_through_others():
    assert {"torch", "ray", "mlflow", "optuna", "numpy", "sqlalchemy", "requests", "aiohttp"} <= libraries()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: NAMED[path])
def test_nothing_beside_a_script_hides_a_package_that_it_needs(script):
    needs = {name.split(".")[0] for name in imported_modules(tree_of(script))} & set(PACKAGES)
    if needs & {"training", "hpo", "ensembles"}:
        needs |= {"training", "data", "models"}
    beside = {path.stem for path in script.parent.glob("*.py")}
    # A script may put the root first instead; then it must do so before it imports.
    assert needs & beside == set() or "\nsys.path[0] = " in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: NAMED[path])
def test_a_program_defines_only_its_arguments_and_main(script):
    tree = tree_of(script)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert {node.name for node in tree.body if isinstance(node, kinds)} == {"parse_arguments", "main"}
    at_once = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    roots = {name.split(".")[0] for name in imported_modules(at_once)}
    assert roots <= set(sys.stdlib_module_names), "imported before the arguments are read"


def test_no_script_is_imported():
    scripts = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PROGRAMS}
    importing = {
        f"{NAMED[path]} imports {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "tests"
        for name in imported_modules(tree_of(path))
        if name in scripts
    }
    assert importing == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_front_holds_a_docstring_and_nothing_more(package):
    tree = tree_of(ROOT / package / "__init__.py")
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_no_module_does_something_when_it_is_imported():
    """Calls at the top level of a module make constants; none of them logs, seeds, opens or prints."""
    doing = {"print", "open", "basicConfig", "manual_seed", "seed", "mkdir", "init", "makedirs"}
    found = {
        f"{NAMED[path]}:{node.lineno}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in PACKAGES and path not in SCRIPTS
        for node in tree_of(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        for name in [ast.unparse(node.value.func).rsplit(".")[-1]]
        if name in doing
    }
    assert found == set()
