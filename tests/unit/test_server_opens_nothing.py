"""The server never unpickles and never runs what it was given: none of the modules it consists of can."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import loom

ROOT = Path(loom.__file__).parent
SERVER_SIDE = ("server", "core", "wire", "net", "journal")
UNPICKLE = {"pickle", "_pickle", "cPickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "tblib"}
RUN = {"eval", "exec", "compile", "__import__"}

# What reads Python objects: the server passes objects on and has none of these.
OPENERS = ("loom.data.pyobj", "loom.data.own", "loom.tasktypes", "loom.executors", "loom.plugins")


def source_of(module: str) -> Path:
    """Of a module or package; compiled ones lie beside their source."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_module(name: str) -> bool:
    return source_of(name).exists()


def own_modules() -> list[str]:
    """All below the packages of the server's side."""
    files = [file for package in SERVER_SIDE for file in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(("loom", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def at_run_time(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker looks at."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def imported_by(node: ast.AST) -> list[str]:
    """Modules, and names in them that may be modules."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def reached() -> dict[str, str]:
    """Modules of Loom that those of the server's side import, directly or not, with who imports them."""
    found = dict.fromkeys(own_modules(), "")
    waiting = list(found)
    while waiting:
        module = waiting.pop()
        named = [module.rpartition(".")[0]]  # its package is imported before
        for node in at_run_time(ast.parse(source_of(module).read_text())):
            named += imported_by(node)
        for name in named:
            if (name == "loom" or name.startswith("loom.")) and name not in found and is_module(name):
                found[name] = module
                waiting.append(name)
    return found


def sins(module: str) -> list[str]:
    """What it imports to unpickle, or calls to run code."""
    found = []
    for node in at_run_time(ast.parse(source_of(module).read_text())):
        found += [f"{module} imports {name}" for name in imported_by(node) if name.partition(".")[0] in UNPICKLE]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUN:
            found.append(f"{module} calls {node.func.id}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            found.append(f"{module} calls import_module")
    return found


def test_no_module_of_the_server_unpickles_or_runs_what_it_is_given() -> None:
    modules = reached()
    assert {"loom.server.shell", "loom.core.server", "loom.wire.codec", "loom.net.link", "loom.journal.writer"} <= set(
        modules
    )
    assert [sin for module in modules for sin in sins(module)] == []


def test_no_module_of_the_server_reaches_what_opens_objects() -> None:
    assert {name: by for name, by in reached().items() if name.startswith(OPENERS)} == {}


def test_the_search_finds_what_it_looks_for() -> None:
    assert any("cloudpickle" in sin for sin in sins("loom.data.pyobj"))
    assert importlib.util.find_spec("loom.data.pyobj") is not None


def test_running_server_has_not_imported_any_of_it() -> None:
    """The modules of the process `loom-server`, and of one that has served a session from a journal."""
    script = (
        "import sys\n"
        "import loom.cli.server\n"
        "from loom.server.shell import ServerShell\n"
        f"print([name for name in sys.modules if name.startswith({OPENERS!r})])\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (said.stdout, said.stderr) == ("[]\n", "")
