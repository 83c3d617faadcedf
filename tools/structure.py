"""Print figures of the structure of the sources: how many functions, how long files are, how dense lines are.

Usage: python -m tools.structure [--path DIRECTORY]
"""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOTS = ("mas", "strategies", "benchmarks")
LONG_FILE = 300  # lines
DOCUMENTED = (ast.FunctionDef, ast.ClassDef, ast.Module)


@dataclass(frozen=True)
class Counts:
    """What is counted in one source file."""

    functions: int
    lines: int  # of the file
    code: int  # lines that are not blank, comment or docstring
    nodes: int  # of the syntax tree
    anys: int
    config_questions: int  # isinstance(config, ...) and getattr(config, ..., default), in the experiments package
    give: int  # docstrings that begin with "Give"


def main() -> None:
    """Print the table of a source tree."""
    parser = argparse.ArgumentParser(prog="python -m tools.structure", description="Print figures of the structure.")
    parser.add_argument("--path", type=Path, default=Path(), help="the root of a source tree (.)")
    print(table(parser.parse_args().path))


def table(root: Path) -> str:
    """Return the figures of a source tree as a Markdown table."""
    counts = [count(path) for path in source_files(root)]
    code = sum(one.code for one in counts)
    if not code:
        raise SystemExit(f"{root}: holds no Python sources in {', '.join(ROOTS)}; give the root of a source tree")
    rows = {
        "files": f"{len(counts)}",
        "functions": f"{sum(one.functions for one in counts)}",
        "lines of code": f"{code}",
        f"files over {LONG_FILE} lines": f"{sum(one.lines > LONG_FILE for one in counts)}",
        "syntax nodes a line of code": f"{sum(one.nodes for one in counts) / code:.1f}",
        "`Any` per 100 lines of code": f"{100 * sum(one.anys for one in counts) / code:.1f}",
        "isinstance, or getattr with a default, on configs": f"{sum(one.config_questions for one in counts)}",
        'docstrings that begin with "Give"': f"{sum(one.give for one in counts)}",
    }
    lines = ["| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines)


def source_files(root: Path) -> Iterator[Path]:
    """Yield the Python files of a source tree. Each is counted once: links to a folder are not followed."""
    for name in ROOTS:
        for path in sorted((root / name).rglob("*.py")):
            inside = path.relative_to(root)
            folders = [root / folder for folder in inside.parents if folder.parts]
            if not any(folder.is_symlink() for folder in folders):
                yield path


def count(path: Path) -> Counts:
    """Return what is counted in a source file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    docstrings = [ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, DOCUMENTED)]
    written = [docstring for docstring in docstrings if docstring]
    filled = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    return Counts(
        functions=sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        lines=len(text.splitlines()),
        code=len(filled) - sum(len(docstring.splitlines()) for docstring in written),
        nodes=len(nodes),
        anys=len(re.findall(r"\bAny\b", text)),
        config_questions=sum(map(asks_config, nodes)) if "experiments" in path.parts else 0,
        give=sum(docstring.lstrip().startswith("Give") for docstring in written),
    )


def asks_config(node: ast.AST) -> bool:
    """Return whether a node asks a config which kind it is of, or what it may lack.

    >>> asks_config(ast.parse("isinstance(config, Forgetting)", mode="eval").body)
    True
    >>> asks_config(ast.parse("getattr(self.config, 'probes', [])", mode="eval").body)
    True
    >>> asks_config(ast.parse("getattr(config, 'probes')", mode="eval").body)
    False
    """
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
        return False
    has_default = node.func.id == "getattr" and len(node.args) == 3
    return "config" in _chain(node.args[0]) and (node.func.id == "isinstance" or has_default)


def _chain(node: ast.AST) -> list[str]:
    """Return the names in ``a.b.c``."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


if __name__ == "__main__":
    main()
