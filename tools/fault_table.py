"""Make faults for real, and write down what a user sees and what was lost.

Run ``python -W ignore -m tools.fault_table > table.md``. Each fault meets a fresh copy of a finished run.
"""

import errno
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import yaml
from PIL import Image
from typer.testing import CliRunner

from mas.cli import app

_CONFIG: dict[str, Any] = {
    "experiment": "forgetting",
    "benchmark": {"stream": "split", "dataset": "digits", "experiences": 2, "scenario": "domain"},
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 64},
    "strategies": [{"name": "naive"}, {"name": "mas"}],
    "seeds": 1,
}
_NOBODY = 65534


class Place:
    """Where a fault is made: a folder with a config, and the finished run of it.

    Attributes:
        folder: scratch.
        config: a YAML file.
        run: the folder of its results.
        around: what lasts while the command runs.
    """

    def __init__(self, folder: Path, around: ExitStack):
        self.folder = folder
        self.config = folder / "config.yaml"
        self.run = folder / "run"
        self.around = around

    def command(self, *changes: str) -> list[str]:
        """Return the command that runs the config, with changes."""
        sets = [part for change in changes for part in ("--set", change)]
        return ["run", str(self.config), "--output", str(self.run), "--workers", "1", *sets]

    def check(self, *changes: str) -> list[str]:
        """Return the command that checks the config, with changes."""
        return ["check", str(self.config), *[part for change in changes for part in ("--set", change)]]

    def cell(self) -> Path:
        """Return the file of a finished cell."""
        return self.run / "cells/mas-seed0.json"


Maker = Callable[[Place], list[str]]


@dataclass(frozen=True)
class Fault:
    """A fault: its name, how it is made, and the function that makes it and returns the command that meets it."""

    name: str
    how: str
    make: Maker


@dataclass(frozen=True)
class Seen:
    """What a user sees of a fault."""

    code: int
    text: str
    seconds: float
    lost: str


def _set(*changes: str) -> Maker:
    return lambda place: place.check(*changes)


def _yaml(text: str) -> Maker:
    def make(place: Place) -> list[str]:
        place.config.write_text(f"experiment: forgetting\n{text}\n", encoding="utf-8")
        return place.check()

    return make


def _cell(old: str, new: str) -> Maker:
    """Return a maker that edits a finished cell."""

    def make(place: Place) -> list[str]:
        text = place.cell().read_text(encoding="utf-8")
        place.cell().write_text(text.replace(old, new, 1), encoding="utf-8")
        return place.command()

    return make


def _file(name: str, content: bytes) -> Maker:
    def make(place: Place) -> list[str]:
        (place.run / name).write_bytes(content)
        return place.command()

    return make


def _folder(name: str) -> Maker:
    def make(place: Place) -> list[str]:
        (place.run / name).unlink()
        (place.run / name).mkdir()
        return place.command()

    return make


def _full_disk(name: str) -> Maker:
    """Return a maker after which a function of the system says that the disk is full; one cell is missing."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make(place: Place) -> list[str]:
        place.cell().unlink()
        place.around.enter_context(patch(name, full))
        return place.command()

    return make


def _other_user(place: Place) -> list[str]:
    place.run.chmod(0o555)
    (place.run / "cells").chmod(0o555)
    place.cell().unlink()
    place.around.enter_context(_as_nobody())
    return place.command()


def _without_home(place: Place) -> list[str]:
    archive = _pack(place, {})
    place.around.enter_context(patch.dict(os.environ, {"HOME": "", "MAS_CACHE": "", "XDG_CACHE_HOME": ""}))
    place.around.enter_context(patch("pathlib.Path.expanduser", _no_home))
    return place.check(f"benchmark.dataset={{name: image_folder, path: {archive}, size: 8}}")


def _no_home(self: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def _pack(place: Place, more: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Return a zip of a few images, and of more files."""
    archive = place.folder / "images.zip"
    with zipfile.ZipFile(archive, "w", compression) as file:
        for part in ("train", "test"):
            for name in ("x", "y"):
                for number in range(3):
                    file.writestr(f"{part}/{name}/{number}.png", _png(8, 8))
        for name, data in more.items():
            file.writestr(name, data)
    return archive


def _png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _images(more: dict[str, bytes], change: Callable[[bytes], bytes] = lambda data: data) -> Maker:
    """Return a maker of a zip of images with more files, and with its bytes changed."""

    def make(place: Place) -> list[str]:
        archive = _pack(place, more, zipfile.ZIP_DEFLATED if more else zipfile.ZIP_STORED)
        archive.write_bytes(change(archive.read_bytes()))
        return place.check(f"benchmark.dataset={{name: image_folder, path: {archive}, size: 8}}")

    return make


def _flag(offset: int, value: int) -> Callable[[bytes], bytes]:
    """Return a function that overwrites two bytes in both headers of a zip's first member."""

    def change(data: bytes) -> bytes:
        found = bytearray(data)
        for signature, start in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
            at = found.index(signature) + start
            found[at : at + 2] = value.to_bytes(2, "little")
        return bytes(found)

    return change


def _bomb_image() -> bytes:
    buffer = BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "png")
    return buffer.getvalue()


def _cut(place: Place) -> list[str]:
    content = place.cell().read_bytes()
    place.cell().write_bytes(content[: len(content) // 2])
    return place.command()


_ALIASES = ", ".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))

FAULTS = [
    Fault("YAML bomb", "eleven levels of nine aliases each", _yaml(f"x: {{a0: &a0 [1], {_ALIASES}}}")),
    Fault("date", "`x: 2020-01-01`", _yaml("x: 2020-01-01")),
    Fault("no number", "`x: !!int abc`", _yaml("x: !!int abc")),
    Fault("5,000 digits", "in the file", _yaml("x: " + "9" * 5000)),
    Fault("5,000 digits", "in `--set`", _set("training.lr=" + "9" * 5000)),
    Fault("nesting of 3,000", "lists in the file", _yaml("x: " + "[" * 3000 + "]" * 3000)),
    Fault("huge batch", "`batch_size: 2**63`", _set("training.batch_size=9223372036854775808")),
    Fault("huge strength", "`lam: 1e308`", _set("strategies=[{name: mas, lam: 1e308}]")),
    Fault("300,000 seeds", "`seeds: 300000`", _set("seeds=300000")),
    Fault("huge network", "`hidden: [10**9]`", _set("model.hidden=[1000000000]")),
    Fault(
        "many steps of a probe", "`steps: 10**9`, `mas check`", _set("probes=[{name: trainability, steps: 1000000000}]")
    ),
    Fault("unknown weights", "`weights: zzz`", _set("model={name: torchvision, model: resnet18, weights: zzz}")),
    Fault("heads that do not divide", "vit_tiny, width 8, heads 3", _set("model={name: vit_tiny, width: 8, heads: 3}")),
    Fault(
        "an import that raises",
        "`function: tools.fault_table:raises`",
        _set("model={name: import, function: 'tools.fault_table:raises'}"),
    ),
    Fault("encrypted zip", "flag set in its first member", _images({}, _flag(6, 1))),
    Fault("unknown compression", "method 99", _images({}, _flag(8, 99))),
    Fault("zip bomb", "a member of 64 MB of zeros", _images({"train/x/b.bmp": bytes(64 << 20)})),
    Fault("decompression bomb", "an image of 900 million pixels", _images({"train/x/b.png": _bomb_image()})),
    Fault("image cut off", "half of a PNG", _images({"train/x/b.png": _png(8, 8)[:40]})),
    Fault("zip cut off", "half of its bytes", _images({}, lambda data: data[: len(data) // 2])),
    Fault("cell cut off", "half of its file", _cut),
    Fault("cell of another seed", "`seed` edited", _cell('"seed": 0', '"seed": 1')),
    Fault("cell of another label", "`label` edited", _cell('"label": "mas"', '"label": "ewc"')),
    Fault("accuracy out of range", "an accuracy of 7", _cell('"untrained": [\n    0', '"untrained": [\n    7')),
    Fault("wrong shape", "an accuracy too many", _cell('"untrained": [', '"untrained": [\n    0.5,')),
    Fault("unknown status", "`status` edited", _cell('"status": "finished"', '"status": "fine"')),
    Fault("cell without content", "`[]` in its file", _file("cells/mas-seed0.json", b"[]")),
    Fault("data.json without content", "`[]` in it", _file("data.json", b"[]")),
    Fault("folder where a cell should be", "`cells/mas-seed0.json/`", _folder("cells/mas-seed0.json")),
    Fault("folder where the config should be", "`config.yaml/`", _folder("config.yaml")),
    Fault("long `--output`", "300 characters", lambda place: [*place.command()[:3], str(place.folder / ("x" * 300))]),
    Fault("disk full at the data", "`fsync` fails (simulated)", _full_disk("os.fsync")),
    Fault("disk full at a new file", "`mkstemp` fails (simulated)", _full_disk("tempfile.mkstemp")),
    Fault("disk full at the name", "`replace` fails (simulated)", _full_disk("pathlib.Path.replace")),
    Fault("folder of another user", "read only, as `nobody`", _other_user),
    Fault("no home directory", "no `HOME`, images to be decoded", _without_home),
    Fault("markup in a name", "`label: '[/b]'`", _set("strategies=[{name: mas, label: '[/b]'}]")),
]


def raises(*args: object, **kwargs: object) -> None:
    """Raise, as a function of a user's own may."""
    raise RuntimeError("this function\nalways fails")


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Be a user who owns nothing, if this one is root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def meet(fault: Fault, finished: Path) -> Seen:
    """Make a fault beside a copy of a finished run; return what a user sees."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        folder = folder / "f"
        shutil.copytree(finished, folder)
        with ExitStack() as around:
            place = Place(folder, around)
            command = fault.make(place)
            before = _content(place.run)
            begun = time.perf_counter()
            done = CliRunner().invoke(app, command)
            seconds = time.perf_counter() - begun
        text = done.stderr.strip() or done.stdout.strip().splitlines()[-1]
        if done.exception and not isinstance(done.exception, SystemExit):
            text = f"TRACEBACK {type(done.exception).__name__}: {done.exception}"
        changed = [name for name, data in before.items() if _content(place.run).get(name) != data]
        left = [name for name in _content(place.run) if Path(name).name.startswith(".")]
        lost = ", ".join(changed + left) or "nothing"
        return Seen(done.exit_code, text.replace(str(folder), "…"), seconds, lost)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    """Print the table."""
    print("| fault | how it was made | what the user sees | code | s | lost |\n| --- | --- | --- | ---: | ---: | --- |")  # noqa: T201
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ, {"MAS_CACHE": f"{scratch}/cache"}):
        finished = Path(scratch) / "finished"
        finished.mkdir()
        (finished / "config.yaml").write_text(yaml.safe_dump(_CONFIG), encoding="utf-8")
        run = ["run", str(finished / "config.yaml"), "--output", str(finished / "run"), "--workers", "1"]
        if CliRunner().invoke(app, run).exit_code:
            raise RuntimeError("the run without a fault failed")
        for fault in FAULTS:
            seen = meet(fault, finished)
            told = " ⏎ ".join(seen.text.splitlines()).replace("|", "\\|")
            told = told if len(told) < 320 else f"{told[:320]}…"
            print(f"| {fault.name} | {fault.how} | `{told}` | {seen.code} | {seen.seconds:.1f} | {seen.lost} |")  # noqa: T201


if __name__ == "__main__":
    main()
