"""The house stands as it was drawn: links, floors, quick imports, a wheel with one package."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each floor may import from those before it, and from its own files.
FLOORS = [
    {"annotations", "imports"},
    {"batches", "state", "finite", "rules"},
    {"recording", "fallback"},
    {"summing"},
    {"columns"},
    {"gradients"},
    {"importance", "local", "penalty", "path_integral", "forgetting"},
    {"information", "plasticity", "task2vec"},
    {"strategies", "benchmarks"},
    {"experiments"},
    {"cli", "cli_folder"},
    {"__main__"},
]
APART = {("strategies", "benchmarks"), ("benchmarks", "strategies")}
SIBLINGS = {("gradients", "gradients")}
MAY_IMPORT_AVALANCHE = {"strategies", "benchmarks", "experiments"}
SOURCES = sorted(
    {
        *ROOT.glob("mas/*.py"),
        *ROOT.glob("mas/rules/*.py"),
        *ROOT.glob("mas/task2vec/*.py"),
        *ROOT.glob("mas/experiments/**/*.py"),
        *ROOT.glob("strategies/*.py"),
        *ROOT.glob("benchmarks/*.py"),
    }
)


def part(path):
    """Name the part of the house that a source file belongs to."""
    inside = path.relative_to(ROOT).parts
    return inside[0] if inside[0] != "mas" else Path(inside[1]).stem


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" if node.module == "mas" else node.module for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem != "__init__" or p.parent.name != "mas"], ids=str)
def test_imports_come_from_below(path):
    here = part(path)
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    assert here in floor, f"{path}: give it a floor in FLOORS"
    for module in imports(path):
        if module.startswith("mas."):
            there = module.split(".")[1]
            assert (
                there == here
                or floor[there] < floor[here]
                or (floor[there] == floor[here] and (here, there) not in APART)
            )
        if module.split(".")[0] == "avalanche":
            assert here in MAY_IMPORT_AVALANCHE, f"{path} imports Avalanche"


@pytest.mark.parametrize("name", ["strategies", "benchmarks"])
def test_the_links_are_links(name):
    link = ROOT / "mas" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name


def in_fresh_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_import_mas_pulls_in_nothing_heavy():
    heavy = in_fresh_python(
        "import mas, sys; print({'torch', 'avalanche', 'matplotlib', 'pandas', 'sklearn'} & {*sys.modules})"
    )
    assert heavy == "set()"


def test_the_library_does_not_import_avalanche():
    code = (
        "import mas, sys; [getattr(mas, n) for n in mas.__all__ if n not in ('strategies', 'benchmarks')]; "
        "print({'avalanche', 'matplotlib'} & {*sys.modules})"
    )
    assert in_fresh_python(code) == "set()"


def test_the_command_line_module_imports_nothing_heavy():
    heavy = in_fresh_python(
        "import mas.cli, sys; print({'torch', 'avalanche', 'matplotlib', 'pandas', 'yaml'} & {*sys.modules})"
    )
    assert heavy == "set()"


def test_every_public_name_is_there():
    import mas

    for name in mas.__all__:
        assert getattr(mas, name).__doc__
    assert {"per_sample_moments", "strategies"} <= set(dir(mas))
    with pytest.raises(AttributeError, match="has no attribute 'mas_importanc'"):
        mas.mas_importanc  # noqa: B018


@pytest.mark.slow
def test_the_wheel_holds_one_package(tmp_path):
    source = tmp_path / "source"  # a copy: leftovers of an older build would end up in the wheel
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    code = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("mas/") for name in code)
    wanted = [p.relative_to(ROOT) for p in SOURCES]
    expected = {str(p) if p.parts[0] == "mas" else f"mas/{p}" for p in wanted}
    templates = {str(p.relative_to(ROOT)) for p in ROOT.glob("mas/experiments/report/templates/*.jinja")}
    assert len(templates) == 1
    stubs = {f"mas/{p.relative_to(ROOT)}" for p in ROOT.glob("strategies/*.pyi")}
    assert expected | templates | stubs == set(code)
