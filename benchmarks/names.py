"""Short names of experiences, for tables and figures: "0+1", "36°", "fashion_mnist 2+7 inverted"."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLExperience, CLScenario

from mas.benchmarks.datasets import DatasetSpec
from mas.benchmarks.deficits import DeficitSpec
from mas.benchmarks.images import Images
from mas.imports import IMPORT

_LONGEST_CLASS_NAME = 12
_MOST_CLASSES = 4  # that are named one by one


def experience_names(benchmark: CLScenario) -> list[str]:
    """Return a short name for each experience of a benchmark's training stream; no two are the same.

    The streams of `mas.benchmarks` name their experiences by what they show: classes, an angle, a data set.
    An experience of another origin is called "experience 0", by its number. Where a name comes again, a
    number follows it: "3", "3 (2)".
    """
    names = []
    for number, experience in enumerate(benchmark.train_stream):
        name = _name_of(experience)
        names.append(f"experience {number}" if name is None else name)
    return _numbered(names)


def dataset_name(spec: DatasetSpec) -> str:
    """Return the name of a data set; of an ``image_folder`` the stem of its path, of an imported one its function."""
    if isinstance(spec, dict) and spec["name"] == "image_folder":
        return Path(spec["path"]).stem
    return _entry_name(spec)


def deficit_name(spec: DeficitSpec) -> str:
    """Return the name of a deficit, or of its function."""
    if callable(spec):
        return getattr(spec, "__name__", "deficit")
    return _entry_name(spec)


def class_set_name(images: Images, classes: Iterable[int]) -> str:
    """Return the name of a set of classes: "0+1", or shorter where there are many: "20–29", "10 classes from 20"."""
    ordered = sorted(classes)
    names = class_names(images, ordered)
    if len(names) <= _MOST_CLASSES:
        return "+".join(names)
    is_contiguous = ordered[-1] - ordered[0] == len(ordered) - 1
    return f"{names[0]}–{names[-1]}" if is_contiguous else f"{len(names)} classes from {names[0]}"


def class_names(images: Images, classes: Sequence[int]) -> list[str]:
    """Return the names of classes, or their numbers where the data set has no names or a long one."""
    known = images.class_names
    if known is None or max(map(len, known)) > _LONGEST_CLASS_NAME:
        return [str(label) for label in classes]
    return [known[label] for label in classes]


def _entry_name(spec: str | Mapping[str, Any]) -> str:
    """Return the name of an entry of a registry; of an imported one that of its function."""
    if isinstance(spec, str):
        return spec
    if spec["name"] == IMPORT:
        return str(spec["function"]).rpartition(":")[2]
    return str(spec["name"])


def _name_of(experience: CLExperience) -> str | None:
    """Return the name that the images of an experience carry, if they do."""
    flat = getattr(experience.dataset, "_flat_data", None)
    names = {part.name for part in getattr(flat, "_datasets", ()) if isinstance(part, Images)}
    return names.pop() if len(names) == 1 else None


def _numbered(names: Sequence[str]) -> list[str]:
    """Return the names with a number after each that stood before."""
    found: list[str] = []
    for name in names:
        free = name
        count = 1
        while free in found:
            count += 1
            free = f"{name} ({count})"
        found.append(free)
    return found
