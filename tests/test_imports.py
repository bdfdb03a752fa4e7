"""Which module may import which, read from the source; and the public surface."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import harness_ext
from harness_ext.protocol import lm_eval_api

PACKAGE = Path(harness_ext.__file__).parent
MODULES = sorted(file.relative_to(PACKAGE).with_suffix("").as_posix() for file in PACKAGE.rglob("*.py"))
WINGS = (
    "training", "selection", "tuning", "engine", "doctor", "leaderboard", "comparison", "results", "stats", "protocol",
    "models", "metrics",
)  # fmt: skip

HOOKS_USE = ("documents", "fewshot", "lm_eval_api", "requests")

EVERYWHERE = ("reading", "names")  # readers of input, at the bottom with `errors`

# Arrows point down only. The longest prefix of a module's path decides what it may import.
ALLOWED: dict[str, tuple[str, ...]] = {
    "version": (),
    "__init__": ("version", "report", "reporting", *WINGS),  # but lazily, see below
    "cli": (
        "cli",
        "version",
        "atomic",
        *WINGS,
        "check",
        "new_task",
        "render",
        "formatting",
        "publish",
        "report",
        "reporting",
        "demo",
        "parity",
        "findings",
        "errors",
    ),
    "demo": (*WINGS, "report", "reporting", "errors"),
    "publish": (
        "publish",
        *WINGS,
        "report",
        "reporting",
        "render",
        "formatting",
        "findings",
        "version",
        "atomic",
        "regions",
        "errors",
    ),
    "training": ("training", "atomic", "regions", "protocol", "models", "trees", "cpu", "metrics", "stats", "errors"),
    "selection": (
        "selection",
        "training",
        "engine",
        "doctor/preflight",
        "comparison/units",
        "results",
        "stats",
        "protocol",
        "metrics",
        "errors",
    ),
    "tuning": ("tuning", "selection", "training", "stats", "models", "atomic", "errors"),
    "engine": ("engine", "version", "atomic", "protocol", "models", "trees", "cpu", "metrics", "stats", "errors"),
    "engine/sequential": ("engine", "comparison", "results", "stats", "protocol", "metrics", "errors"),
    "doctor": ("doctor", "comparison", "results", "stats", "protocol", "metrics", "findings", "errors"),
    "doctor/replay": ("doctor", "engine", "models", "comparison", "results", "stats", "protocol", "findings", "errors"),
    "doctor/diagnosis": ("findings",),
    "doctor/preflight": (
        "doctor/preflight",
        "doctor/diagnosis",
        "doctor/logged/leaks",
        "doctor/rescoring",
        "training",
        "engine",
        "protocol",
        "models",
        "trees",
        "metrics",
        "findings",
        "errors",
    ),
    "parity": (
        "parity",
        "doctor/replay",
        "engine",
        "protocol",
        "models",
        "atomic",
        "results/outputs",
        "stats/sequential",
        "findings",
        "errors",
    ),
    "parity/outcome": ("findings",),
    "leaderboard": ("comparison", "render", "results"),
    "render/diagnosis": ("doctor/diagnosis", "findings"),
    "render/parity": ("render/grid", "parity/outcome"),
    "render": (
        "render",
        "formatting",
        "comparison/choices",
        "comparison/rows",
        "comparison/gain",
        "metrics/statistic",
        "stats",
        "errors",
    ),
    "formatting": ("metrics/statistic", "stats"),  # pure: words for numbers
    "render/grid": (),
    "render/report": (
        "render",
        "comparison/choices",
        "formatting",
        "comparison/rows",
        "stats",
        "doctor/diagnosis",
        "findings",
        "catalogue",
        "reporting/contents",
    ),
    "reporting": (
        "reporting",
        "comparison",
        "doctor/diagnosis",
        "results",
        "metrics",
        "models/card",
        "models/sources",
        "stats",
        "protocol/ties",
        "protocol/documents",
        "protocol/task_folders",
        "training/recipe",
        "findings",
        "version",
        "errors",
    ),
    "reporting/contents": ("comparison/rows", "doctor/diagnosis", "metrics/labels", "stats/sequential/record"),
    "report": (
        "reporting",
        "render/report",
        "leaderboard",
        "doctor",
        "comparison",
        "results",
        "atomic",
        "errors",
    ),
    "comparison": ("comparison", "results", "stats", "formatting", "metrics", "protocol/ties", "findings", "errors"),
    "results": (
        "results",
        "stats/sequential",
        "protocol/ties",
        "protocol/token_settings",
        "protocol/sample_files",
        "metrics",
        "errors",
    ),
    "stats": ("stats",),
    "findings": ("catalogue", "errors"),
    "catalogue": (),
    "hooks": ("hooks", "metrics", *(f"protocol/{name}" for name in HOOKS_USE), "errors"),
    "evaluate_metrics": ("hooks", "metrics"),
    "wordnet": ("atomic", "errors"),
    "check": ("check", "protocol", "metrics", "findings", "errors"),
    "new_task": ("new_task", "protocol", "atomic", "errors"),
    "protocol": ("protocol", "metrics", "errors"),
    "models": ("models", "trees", "cpu", "atomic", "errors"),
    "trees": ("trees", "cpu", "errors"),
    "trees/layout": (),
    "cpu": ("cpu",),
    "atomic": ("errors",),
    "metrics": ("metrics", "errors"),
    "regions": ("errors",),
    "errors": (),
    "reading": ("reading", "names", "errors"),
    "names": (),
}


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def _ours(tree: ast.AST) -> set[str]:
    """Modules of this package that a tree imports, as paths; "" is the package itself (its version)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            # `from harness_ext.metrics import squad` imports the module metrics/squad
            names = [
                f"{node.module}.{alias.name}" if _is_module(f"{node.module}.{alias.name}") else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found |= {name.removeprefix("harness_ext").lstrip(".").replace(".", "/") for name in names if _is_ours(name)}
    return found


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "harness_ext"


def _is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return _is_ours(name) and (path.with_suffix(".py").is_file() or path.is_dir())


def _within(module: str, place: str) -> bool:
    return module == place or (place != "" and module.startswith(f"{place}/"))


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module: str) -> None:
    place = max((place for place in ALLOWED if _within(module, place)), key=len)
    wrong = {
        imported
        for imported in _ours(_tree(module))
        if not any(_within(imported, allowed) for allowed in (*ALLOWED[place], *EVERYWHERE))
    }
    assert not wrong, f"{module} must not import {sorted(wrong)}"


def test_no_modules_import_each_other() -> None:
    """In a circle, also where an import stands inside a function."""
    named = {module: {name for name in _ours(_tree(module)) if name in MODULES} - {module} for module in MODULES}
    list(graphlib.TopologicalSorter(named).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("cli/")])
def test_only_the_command_line_prints(module: str) -> None:
    calls = [node for node in ast.walk(_tree(module)) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(("metrics/", "stats/", "trees/layout"))])
def test_pure_modules_need_no_torch(module: str) -> None:
    outside = {"torch", "transformers", "lm_eval", "peft", "datasets"}
    names = {name.split(".")[0] for name in _imported(_tree(module))}
    assert not names & outside


def _imported(tree: ast.AST) -> list[str]:
    """Names of all modules that a tree imports, also inside functions and by `import_module`."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names += [str(part.value) for part in node.args if isinstance(part, ast.Constant)]
    return names


PARSERS = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.compose", "torch.load", "pickle.load"}
PARSES_ITS_OWN = {  # texts that this package wrote a moment ago
    "training/seeds", "training/workspace", "new_task/texts", "check/child", "reading/match_patterns",
    "reading/patterns",
    "engine/store", "engine/answer_logs",  # or with a checksum
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_input_is_parsed_by_the_readers_alone(module: str) -> None:
    """The parsers of the libraries know no limits; see `harness_ext.reading`."""
    called = {ast.unparse(node.func) for node in ast.walk(_tree(module)) if isinstance(node, ast.Call)}
    assert module in PARSES_ITS_OWN or not called & PARSERS


def test_one_module_imports_lm_eval() -> None:
    importing = {module for module in MODULES if any(n.split(".")[0] == "lm_eval" for n in _imported(_tree(module)))}
    assert importing == {"protocol/lm_eval_api"}


def test_what_is_imported_of_lm_eval_is_there() -> None:
    """Names come through `__getattr__`, so that no type checker sees one that is missing."""
    wanted = {
        alias.name
        for module in MODULES
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.ImportFrom) and node.module == "harness_ext.protocol.lm_eval_api"
        for alias in node.names
    }
    assert wanted >= {"HFLM", "TaskManager", "requests_for"}
    assert not [name for name in wanted if not hasattr(lm_eval_api, name)]
    assert lm_eval_api.HOMES.keys() <= wanted, "nobody uses these"


def test_entry_points_lead_somewhere() -> None:
    """To a class or a function, as lm-eval's registries load them; for tasks, to a package in our wheel."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]
    (tasks,) = points.pop("lm_eval.tasks").values()
    assert tasks.replace(".", "/") in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].values()
    for group in points.values():
        for value in group.values():
            module, _, name = value.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_public_surface() -> None:
    names = "Recipe compare_runs diagnose evaluate examine_batches load_runs make_entries train_adapter tune"
    assert harness_ext.__all__ == [*names.split(), "write_report"]
    for name in harness_ext.__all__:
        assert getattr(harness_ext, name).__name__ == name
        assert name in dir(harness_ext)
    with pytest.raises(AttributeError, match="no attribute 'recipe_of_the_day'"):
        harness_ext.recipe_of_the_day  # noqa: B018


def test_import_is_instant() -> None:
    heavy = "import harness_ext, sys; sys.exit(bool({'torch', 'lm_eval', 'numpy', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
