"""The rules of the house that a machine can read off the source (DESIGN §3)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import increlora_jax

PACKAGE = Path(increlora_jax.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

ALLOWED = {
    "errors": (),
    "dropout": (),
    "quantization": ("errors",),
    "values": ("errors",),
    "config": ("config", "core", "methods.table", "values", "errors"),
    "runtime": ("runtime", "errors"),
    "files": ("files", "errors"),
    "core": ("core", "errors"),
    "nn": ("nn", "core", "config", "files", "dropout", "quantization", "errors"),
    "methods": ("methods", "nn", "core", "config", "values", "errors"),
    "weights": ("weights", "files", "quantization", "errors"),
    "models": ("models", "weights", "files", "dropout", "quantization", "errors"),
    "generation": ("generation", "errors"),
    "tasks": ("tasks", "config", "runtime", "errors"),
    # Trainers of others get methods and steps; nothing of these imports it.
    "interop": (
        "interop",
        "training",
        "methods",
        "tasks",
        "models",
        "weights",
        "nn",
        "core",
        "config",
        "files",
        "errors",
    ),
    # The protocol of methods, never a concrete one.
    "training": (
        "training",
        "methods.base",
        "tasks",
        "nn",
        "core",
        "config",
        "files",
        "runtime",
        "errors",
    ),
    "page": ("page", "errors"),
    # It builds; the commands call it.
    "run": (
        "run",
        "page",
        "interop",
        "training",
        "methods",
        "tasks",
        "models",
        "weights",
        "nn",
        "core",
        "config",
        "values",
        "files",
        "quantization",
        "runtime",
        "errors",
        "__version__",
    ),
}
"""What each room may import of the package; what is not listed composes, and may import all."""

OUTSIDE = ("experiments", "tests")
HEAVY = ("datasets", "matplotlib", "pyarrow", "torch", "peft", "scipy", "sklearn")
NOT_IN_CORE = ("flax", "os", "io", "pathlib", "json", "yaml", "safetensors")

MAX_FILE, MAX_FUNCTION = 450, 40


def problems_of(path: Path, source: str) -> list[str]:
    """Everything a file of the package does against the rules; `path` is relative to it."""
    tree = ast.parse(source)
    room = path.parts[0].removesuffix(".py")
    found = [problem for name in _imports(tree, path) for problem in _import_problems(room, name)]
    loaded = {name.partition(".")[0] for name in _imports(_module_level(tree), path)}
    found += [f"imports {name} before it is needed" for name in HEAVY if name in loaded]
    if (length := len(source.splitlines())) > MAX_FILE:
        found.append(f"has {length} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{node.name} has {length} lines")
        if isinstance(node, ast.Call) and _opens_text_blindly(node):
            found.append(f"line {node.lineno}: leaves a text file's encoding to the machine")
    return found


def _opens_text_blindly(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in ("open", "read_text", "write_text") or ast.unparse(call.func) == "os.open":
        return False
    is_binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args)
    return not is_binary and not any(keyword.arg == "encoding" for keyword in call.keywords)


def _import_problems(room: str, name: str) -> list[str]:
    top, _, inner = name.partition(".")
    if top in OUTSIDE or (room == "core" and top in NOT_IN_CORE):
        return [f"imports {name}"]
    if top != "increlora_jax" or room not in ALLOWED:
        return []
    is_allowed = any(f"{inner}.".startswith(f"{allowed}.") for allowed in ALLOWED[room])
    return [] if is_allowed else [f"imports {name}"]


def _imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """The full dotted name of whatever is imported: of the thing, not only of its module."""
    folder = ["increlora_jax", *path.parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _module_level(tree: ast.Module) -> ast.Module:
    """The same without the bodies of functions: what runs when the module is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815
        visit_Lambda = ast.NodeTransformer.generic_visit  # noqa: N815

    return Strip().visit(ast.parse(ast.unparse(tree)))


BLIND = "line 1: leaves a text file's encoding to the machine"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_the_rules(path):
    assert problems_of(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_every_room_is_known():
    rooms = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert rooms - {"bundled"} <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("path", "line", "problem"),
    [
        ("core/a.py", "import flax", "imports flax"),
        ("core/a.py", "from pathlib import Path", "imports pathlib.Path"),
        ("core/a.py", "from increlora_jax.nn import attach", "imports increlora_jax.nn.attach"),
        ("core/a.py", "from increlora_jax import nn", "imports increlora_jax.nn"),
        ("core/a.py", "from ..nn.attach import merge", "imports increlora_jax.nn.attach.merge"),
        ("core/a.py", "from .. import config", "imports increlora_jax.config"),
        ("core/a.py", "import increlora_jax.training", "imports increlora_jax.training"),
        ("core/a.py", "def f():\n    import increlora_jax.nn", "imports increlora_jax.nn"),
        ("config/a.py", "from increlora_jax.nn.skeleton import split",
         "imports increlora_jax.nn.skeleton.split"),
        ("errors.py", "import increlora_jax.core", "imports increlora_jax.core"),
        ("nn/a.py", "from increlora_jax.methods import base", "imports increlora_jax.methods.base"),
        ("methods/a.py", "import increlora_jax.training.step",
         "imports increlora_jax.training.step"),
        ("models/a.py", "from increlora_jax.nn.attach import attach",
         "imports increlora_jax.nn.attach.attach"),
        ("tasks/a.py", "from increlora_jax.nn import attach", "imports increlora_jax.nn.attach"),
        ("training/a.py", "from increlora_jax.methods.lora import lora",
         "imports increlora_jax.methods.lora.lora"),
        ("training/a.py", "from increlora_jax.methods import registry",
         "imports increlora_jax.methods.registry"),
        ("training/a.py", "import increlora_jax.methods", "imports increlora_jax.methods"),
        ("training/a.py", "from increlora_jax.weights.folder import read_config",
         "imports increlora_jax.weights.folder.read_config"),
        ("train.py", "from experiments.a import b", "imports experiments.a.b"),
        ("train.py", "import tests.tiny", "imports tests.tiny"),
        ("tasks/a.py", "import datasets", "imports datasets before it is needed"),
        ("train.py", "try:\n    from torch import nn\nexcept ImportError:\n    nn = None",
         "imports torch before it is needed"),
        ("train.py", "class A:\n    import peft", "imports peft before it is needed"),
        ("train.py", "path.write_text('x')", BLIND),
        ("train.py", "open(path, 'w')", BLIND),
        ("core/a.py", "\n" * 451, "has 451 lines"),
        ("core/a.py", "def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
        ("core/a.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 40,
         "f has 41 lines"),
    ],
)  # fmt: skip
def test_a_violation_is_found_and_named(path, line, problem):
    assert problems_of(Path(path), line) == [problem]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/a.py", "import jax\nfrom increlora_jax.core.adapter import Slots"),
        ("core/a.py", "from .adapter import Slots\nfrom ..errors import InputError"),
        ("training/a.py", "from increlora_jax.methods.base import Method"),
        ("training/a.py", "from increlora_jax.methods import base"),
        ("tasks/a.py", "def f():\n    import datasets"),
        ("tasks/a.py", "class A:\n    def f(self):\n        from datasets import load_dataset"),
        ("train.py", "from increlora_jax.methods.lora import lora"),
        ("train.py", "path.open('rb')"),
        ("train.py", "os.open(path, os.O_RDONLY)"),
        ("train.py", "path.read_text(encoding='utf-8')"),
        ("core/a.py", "\n" * 450),
        ("core/a.py", "def f():\n" + "    x = 1\n" * 39),
    ],
)
def test_what_is_allowed_is_no_violation(path, line):
    assert problems_of(Path(path), line) == []
