"""No line of the package lets a file bring code along: read off its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import increlora_jax

PACKAGE = Path(increlora_jax.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
           "imp", "runpy", "code")  # fmt: skip
"""Whoever imports them can be made to run what a file says; `pickletools` only takes it apart."""

CALLS = ("eval", "exec", "compile", "__import__", "system", "popen", "execfile", "import_module")
OF_MODULES = {
    "yaml": ("load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all",
             "Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader"),
    "np": ("load", "loads", "fromfile", "genfromtxt"),
    "numpy": ("load", "loads", "fromfile", "genfromtxt"),
    "jnp": ("load",),
    "torch": ("load",),
    "shutil": ("unpack_archive",),
}  # fmt: skip
UNLESS_FALSE = ("trust_remote_code", "allow_pickle", "shell")
LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModel")
"""Of transformers: they run a folder's own code unless told not to."""


def problems_of(source: str) -> list[str]:
    """Everything in a source that could run what a file brings along."""
    return [
        f"line {node.lineno}: {problem}"
        for node in ast.walk(ast.parse(source))
        for problem in _find(node)
    ]


def _find(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"imports {n.name}" for n in names if n.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            taken = {n.name for n in names} & {*OF_MODULES.get(module, ()), "extractall"}
            if module.split(".")[0] in MODULES or taken:
                yield f"imports {', '.join(sorted(taken)) or 'from'} {module}"
        case ast.Attribute(value=ast.Name(id=module), attr=attr):
            if attr in OF_MODULES.get(module, ()):
                yield f"{module}.{attr}"
        case ast.Call():
            yield from _find_in_call(node)


def _find_in_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    # A method may be called so: NNX models have an `eval`, and `re` a `compile`.
    is_bare = isinstance(call.func, ast.Name) or name in ("os.system", "os.popen")
    if is_bare and name.rpartition(".")[2] in CALLS:
        yield f"calls {name}"
    if name.endswith((".extractall", ".extract")):
        yield f"calls {name}"
    for keyword in UNLESS_FALSE:
        if keyword in given and ast.unparse(given[keyword]) != "False":
            yield f"passes {keyword}"
    is_loader = name.split(".")[0] in LOADERS and name.endswith(".from_pretrained")
    if is_loader and "trust_remote_code" not in given:
        yield f"calls {name} without trust_remote_code=False"


BY_A_FLAG = {Path("methods/code.py"): ["calls import_module"]}
"""Code that a user names by a flag; `tests/methods/test_outside.py` sees that no file can."""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_of_the_package_runs_nothing_that_a_file_brings(path):
    found = problems_of((PACKAGE / path).read_text(encoding="utf-8"))
    assert [problem.partition(": ")[2] for problem in found] == BY_A_FLAG.get(path, [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    import dill.source",
        "torch.load(path)",
        "from pickle import loads",
        "from torch import load",
        "from yaml import load",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "yaml.load(text)",
        "yaml.compose(text, yaml.Loader)",
        "np.load(path)",
        "f(path, allow_pickle=True)",
        "f(path, allow_pickle=chosen)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "AutoConfig.from_pretrained(folder)",
        "subprocess.run(words, shell=True)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_what_could_is_found(line):
    assert len(problems_of(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import pickletools",
        "model.eval()",
        "re.compile('x')",
        "yaml.compose(text, Loader)",
        "class Loader(yaml.SafeLoader): ...",
        "yaml.safe_dump(x)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=False)",
        "json.load(file)",
    ],
)
def test_what_could_not_is_left_alone(line):
    assert problems_of(line) == []
