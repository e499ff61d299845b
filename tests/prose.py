"""Measures of the prose: `python tests/prose.py [ROOM or FILE …]` prints them."""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

MAX_WORDS = 30
"""Longest sentence of a docstring; 20 words is the aim."""
MAX_WHAT, MAX_ANY = 1.5, 15.0
"""`what` a thousand words of docstrings; `Any` a thousand lines."""

TYPED = ("core", "nn", "training")
"""Rooms in which `Any` is a last resort."""

POINTLESS = """
what those that which of whether how why who where when if as by for from in inside among with
without to under on at its their it they whatever always everything some such there
"""
"""First words of docstrings that open with a clause in place of a verb or a noun."""

VERBS = """
accept adapt add advance allocate allow alternate announce answer append apply arrange ask
assemble assert attach attend average begin bind bound bring broadcast build cache calculate
call carry cast change check choose chunk clear clip close collate collect combine compare
compile compute concatenate configure connect convert copy correct count cover create cut decide
decode decompress define delete derive describe detach detect differentiate discard dispatch
distribute divide donate download draw drop embed empty encode enter estimate evaluate execute
exit expand export extend extract feed fetch fill filter find fit flatten flush format forward
freeze gather generate get give grant group grow handle hash hide hold identify ignore import
infer initialize insert install interpret iterate join keep label launch lay leave let limit
link list load lock log look make map mark mask match measure merge mix move multiply name
normalize note number open order pack pad parse pass permute pick place plan plot pool pop
predict prefix prepare preserve print project promote propagate protect prune put quantize quote
raise rank read rebuild receive recompute record redirect reduce refuse regularize reject
release remember remove rename render reorder repeat replace replicate report represent require
reserve reset reshape resolve restore restrict resume return reuse reverse rotate round run
sample save say scale scan score search see select send separate serve set shape shard share
shift show shuffle skip slice smooth sort split spread stack start step stop store strip
substitute subtract sum summarize support swap switch take tell test time tokenize total trace
train transform translate transpose treat trim truncate try turn undo unpack unstack update
upload use validate verify visit wait warn weigh widen wrap write yield zero
"""
"""The verbs that open a function's docstring. One that is missing here is added here."""

HARMLESS_ELSE = r"(?:(?:no|any|some|every)(?:thing|body|one|where)|all|who|what)\b[\w' ]{0,12} else"
BANNED = [
    (r"lest", "so that … not, or otherwise"),
    (r"(?:or )?else", "otherwise"),
    (r"be it", "whether … or …"),
    (r"tells|(?:is|are|be|was) told", "returns, prints, says or shows"),
    (r"(?:goes|go|going|went) on", "continues or resumes"),
    (r"lies?", "is"),
    (r"at rest", "between steps"),
    (r"stands? there", "a noun and the verb of the thing"),
    (r"(?:those|that|one|all) of which", "a noun"),
]
"""Words that make a text hard to read (DESIGN §6), and those to write in their place."""

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "Example", "Examples")
MISNAMED = {
    "Arguments": "Args", "Parameters": "Args", "Params": "Args", "Return": "Returns",
    "Raise": "Raises", "Yield": "Yields", "Fields": "Attributes",
}  # fmt: skip


class Docstring(NamedTuple):
    """Docstring of a module, a class or a function, and the line it starts at."""

    text: str
    line: int
    node: ast.AST


class Counts(NamedTuple):
    """Counts of one room, which add up over its files."""

    any: int = 0
    lines: int = 0
    what: int = 0
    words: int = 0
    openings: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Add the counts of another file."""
        return Counts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def docstrings(tree: ast.Module) -> Iterator[Docstring]:
    """Yield the docstrings of a file, without their indent."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield Docstring(text, node.body[0].lineno, node)


def count(source: str) -> Counts:
    """Count `Any` and lines, `what` and words of docstrings, and wrong openings."""
    found = list(docstrings(ast.parse(source)))
    words = [word for doc in found for word in re.findall(r"[A-Za-z]+", doc.text)]
    return Counts(
        len(re.findall(r"\bAny\b", re.sub(r".*import.*Any.*", "", source))),
        source.count("\n"),
        sum(word.lower() == "what" for word in words),
        len(words),
        sum(bool(opening_problem(doc)) for doc in found),
    )


def opening_problem(doc: Docstring) -> str:
    """Return the reason why a docstring opens with a wrong word, or nothing."""
    first = doc.text.split()[0].rstrip(",;:.")
    if first.lower() in POINTLESS.split():
        return f"opens with {first!r}: open with a verb (a class: with a noun)"
    is_function = isinstance(doc.node, ast.FunctionDef | ast.AsyncFunctionDef)
    if not is_function or _is_property(doc.node) or _is_equation(doc.text):
        return ""
    if first.lower() in VERBS.split():
        return ""
    return f"opens with {first!r}: open with a verb (a new verb: add it to VERBS in tests/prose.py)"


def _is_property(node: ast.AST) -> bool:
    names = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return any("property" in name for name in names)


def _is_equation(text: str) -> bool:
    """Take an opening such as `x·W + b` or `f = …` for an equation."""
    first, *rest = text.split(maxsplit=2)
    return not re.fullmatch(r"[A-Za-z'-]{2,}[,;:.]?", first) or (bool(rest) and rest[0] in "=+∈")


def prose_of(text: str) -> list[str]:
    """Return the lines of a docstring without code: doctests and `backticks` are blank."""
    lines, in_code, in_doctest = [], False, False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        in_doctest = bool(line.strip()) and (in_doctest or line.lstrip().startswith(">>>"))
        in_code = in_code and (not line.strip() or indent > 0)
        lines.append("" if in_code or in_doctest else re.sub(r"`[^`]*`", "x", line))
        in_code = in_code or line.rstrip().endswith("::")
    return lines


def sentences(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield each sentence with the number of its first line, from 0.

    A blank line, an item of a list or of a section, and a row of a table start a sentence.
    """
    start, words = 0, []
    for number, line in enumerate(lines):
        if not line.strip() or re.match(r"\s*([-*|#]|\d+\.|[\w`*, ]+:(\s|$))", line):
            yield start, " ".join(words)
            words = []
        for word in line.split():
            start = start if words else number
            words.append(word)
            if re.search(r"[.!?:][)\"']*$", word) and not re.search(r"e\.g\.|i\.e\.", word):
                yield start, " ".join(words)
                words = []
    yield start, " ".join(words)


def long_sentences(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield a problem for every sentence with more than `MAX_WORDS` words."""
    for number, sentence in sentences(lines):
        length = len(re.findall(r"[A-Za-z][\w'-]*", sentence))
        if length > MAX_WORDS:
            start = " ".join(sentence.split()[:5])
            yield number, f"sentence of {length} words ({start} …): make it two"


def banned_words(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield a problem for every word of `BANNED`, with the words to write instead."""
    for number, line in enumerate(lines):
        plain = re.sub(HARMLESS_ELSE, "", re.sub(r"`[^`]*`", "x", line), flags=re.I)
        for pattern, instead in BANNED:
            if match := re.search(rf"\b{pattern}\b", plain, re.I):
                yield number, f"{match[0]!r}: write {instead}"


def section_problems(text: str) -> Iterator[tuple[int, str]]:
    """Yield a problem for every section of a docstring with a wrong name, place or indent."""
    lines, seen = text.splitlines(), []
    for number, line in enumerate(lines):
        match = re.fullmatch(r"(\s*)([A-Z][a-z]+):\s*", line)
        if not match or match[2] not in SECTIONS + tuple(MISNAMED):
            continue
        name = MISNAMED.get(match[2], match[2])
        if name != match[2] or match[1]:
            yield number, f"section {line.strip()!r}: write '{name}:' without an indent"
        if number == 0 or lines[number - 1].strip() or not lines[number - 2].strip():
            yield number, f"section {name}: put one blank line before it"
        if seen and SECTIONS.index(name) < max(map(SECTIONS.index, seen)):
            yield number, f"section {name}: the order is {', '.join(SECTIONS)}"
        body = lines[number + 1] if number + 1 < len(lines) else ""
        if not re.match(r" {4}\S", body):
            yield number, f"section {name}: indent its text by 4 spaces"
        seen.append(name)


def has_many_parameters(node: ast.AST) -> bool:
    """Return whether a node is a public function with more than three parameters."""
    if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
        return False
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) > 3


def strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the messages of a file: strings of four words or more that are no docstrings."""
    attributes = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and len(node.value.split()) > 3 and id(node) not in attributes:
            yield node


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a file with the number of their line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def problems(source: str) -> list[tuple[int, str]]:
    """Return the problems of a file of Python in order, each with the number of its line."""
    tree, found = ast.parse(source), []
    for doc in docstrings(tree):
        lines = prose_of(doc.text)
        if opening := opening_problem(doc):
            found.append((doc.line, opening))
        if doc.node in tree.body and has_many_parameters(doc.node) and "Args:" not in doc.text:
            found.append((doc.line, "more than three parameters: add 'Args:'"))
        for check in (long_sentences(lines), banned_words(lines), section_problems(doc.text)):
            found += [(doc.line + number, problem) for number, problem in check]
    documented = {id(doc.node.body[0]) for doc in docstrings(tree)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and id(node) not in documented:  # the docstring of a constant
            text = str(node.value.value).splitlines()
            found += [(node.lineno + n, p) for n, p in banned_words(text)]
    for line, comment in comments(source):
        found += [(line, problem) for _, problem in banned_words([comment])]
    for node in strings(tree):
        found += [(node.lineno, problem) for _, problem in banned_words([node.value])]
    return sorted(set(found))


def markdown_problems(text: str) -> list[tuple[int, str]]:
    """Return the problems of a page of Markdown: banned words, long sentences, issue numbers."""
    lines = re.sub(
        r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), text, flags=re.M | re.S
    ).splitlines()
    prose = ["" if line.startswith("|") else re.sub(r"`[^`]*`", "x", line) for line in lines]
    found = [*banned_words(lines), *long_sentences(prose)]
    issues = [(n, m[0]) for n, line in enumerate(lines) if (m := re.search(r"\bissue \d+", line))]
    found += [(n, f"{issue!r}: name the thing, not the issue") for n, issue in issues]
    return sorted((number + 1, problem) for number, problem in found)


def room_of(path: Path) -> str:
    """Return the room of a file: a folder of the package, `(root)`, or `experiments`."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "increlora_jax":
        return parts[0]
    return parts[1] if len(parts) > 2 else "(root)"


def files() -> list[Path]:
    """Return the Python files of the package and of the experiments."""
    return [
        path
        for folder in ("increlora_jax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def counts() -> dict[str, Counts]:
    """Return the counts of every room."""
    rooms: dict[str, Counts] = {}
    for path in files():
        room = room_of(path)
        mine = count(path.read_text(encoding="utf-8"))
        rooms[room] = rooms.get(room, Counts()).plus(mine)
    return rooms


def findings(path: Path) -> list[str]:
    """Return the problems of a file as `file:line: problem` and the remedy."""
    text = path.read_text(encoding="utf-8")
    found = markdown_problems(text) if path.suffix == ".md" else problems(text)
    return [f"{path.relative_to(ROOT)}:{line}: {problem}" for line, problem in found]


def main() -> None:
    """Print the table of all rooms, or the findings of the rooms and files that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", nargs="*", help="rooms (core, nn, (root), …) or files")
    where = parser.parse_args().where
    if not where:
        for room, c in sorted(counts().items()):
            print(  # noqa: T201
                f"{room:12} Any {1000 * c.any / c.lines:5.1f} a 1000 lines   "
                f"what {1000 * c.what / max(c.words, 1):5.1f} a 1000 words   "
                f"openings {c.openings:4}"
            )
    for path in files():
        if room_of(path) in where or str(path.relative_to(ROOT)) in where:
            sys.stdout.writelines(f"{line}\n" for line in findings(path))


if __name__ == "__main__":
    main()
