"""The shape of the house, kept by counting: sizes of modules and functions, return types, import cycles, settings."""

import ast
import io
import statistics
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mint_stream.settings import Settings

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "mint_stream").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}
FUNCTIONS = [
    (path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def body_lines(node: Any) -> int:
    """Lines of a function without its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return node.end_lineno - first.lineno + 1


def code_lines(path: Path) -> int:
    """Lines with a token on them that is neither comment nor docstring."""
    source = path.read_text()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in skipped]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstring_lines(ast.parse(source)))


def docstring_lines(tree: ast.Module) -> set[int]:
    bare = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return {line for node in bare if isinstance(node.value.value, str) for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def settings_fields(tree: type[BaseModel]) -> int:
    kinds = [field.annotation for field in tree.model_fields.values()]
    return sum(settings_fields(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else 1 for kind in kinds)


def test_three_modules_in_four_are_read_without_scrolling() -> None:
    short = [path for path in MODULES if lines_of(path) <= 150]
    assert len(short) >= 0.75 * len(MODULES), sorted((lines_of(path), path.name) for path in set(MODULES) - set(short))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_has_more_than_400_lines(path: Path) -> None:
    assert lines_of(path) <= 400


def test_functions_are_a_few_lines() -> None:
    sizes = sorted(body_lines(node) for _, node in FUNCTIONS)
    assert statistics.median(sizes) <= 8
    assert sizes[int(0.9 * len(sizes))] <= 30


def test_every_function_says_what_it_returns() -> None:
    silent = [f"{path.name}:{node.name}" for path, node in FUNCTIONS if node.returns is None]
    assert not silent


def test_imports_inside_functions_are_only_in_the_command_line() -> None:
    inside = [
        f"{path.name}:{node.lineno}"
        for path, function in FUNCTIONS
        if "cli" not in path.parts
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not inside


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(tree: ast.Module) -> set[str]:
    """Our modules that a module names in its imports, those for types and those inside functions among them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            found |= {one if (one := f"{node.module}.{alias.name}") in NAMES else node.module for alias in node.names}
    return found & NAMES


def test_no_modules_import_each_other_in_a_circle() -> None:
    order = TopologicalSorter({module_name(path): imported(tree) - {module_name(path)} for path, tree in TREES.items()})
    order.prepare()  # raises CycleError, which names the circle


def test_settings_are_few_enough_to_know() -> None:
    assert settings_fields(Settings) <= 60


def test_a_topic_file_is_short() -> None:
    files = sorted((ROOT / "topics").glob("*.yaml"))
    assert files
    assert all(lines_of(path) <= 23 for path in files)


def test_tests_weigh_about_as_much_as_code() -> None:
    """Lines that do something, on both sides: prose about the code is not code."""
    code = sum(code_lines(path) for path in MODULES)
    tests = sum(code_lines(path) for path in (ROOT / "tests").rglob("*.py"))
    assert 0.8 <= tests / code <= 1.3, (tests, code)
