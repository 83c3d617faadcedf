"""What people read of a map of tasks."""

import pandas as pd

from mas.experiments.kind import Tables
from mas.experiments.kinds.task_map.config import TaskMap, same_images
from mas.experiments.kinds.task_map.figures import UNITS
from mas.experiments.kinds.task_map.geometry import complete_part
from mas.experiments.kinds.task_map.tables import difficulty, square
from mas.experiments.report.sections import Headline, Page, Section, Table
from mas.experiments.report.text import few_seeds, intervals, number, percent

READING = {
    "cosine": "From 0, the same filters in the same proportions, towards 1; a filter that none uses counts as shared.",
    "asymmetric": (
        "The cosine distance less 0.15 of the first task's distance from the trivial task: a complex task makes a good "
        "start. It goes from the task of the row to that of the column, and is negative from a task to itself."
    ),
    "normalized_cosine": "The cosine distance of what the tasks leave free. From 0 to 1.",
    "kl": "Kullback–Leibler divergence of the posteriors of the weights, from the task of the row, in nats.",
    "jensen_shannon": "Of the posteriors of the weights, in nats; 0 for equal tasks.",
    "correlation": "1 minus the correlation of the posteriors' variances. From 0 to 2; 1 is unrelated.",
}
"""By the name of a distance: how it is read."""

ALL_DIVERGED = "Every cell diverged: there is no embedding."

_LISTED = 10  # pairs on the page
_SHOWN = 3  # rows of each sort in the terminal


def page(config: TaskMap, tables: Tables) -> Page:
    """Return the page of a run."""
    if tables["tasks"].empty:
        return Page("a map of tasks", ALL_DIVERGED, [])
    sections = [*_maps(config, tables), *_distances(config, tables), _difficulty(config, tables), _orders(tables)]
    return Page("a map of tasks", _introduction(config, tables), [*_retrieval(config, tables), *sections])


def headline(config: TaskMap, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    if tables["tasks"].empty:
        return Headline("tasks", Table(["", "tasks", "distance or norm"], []), [ALL_DIVERGED])
    near, far = nearest_and_farthest(_own_distances(config, tables), _SHOWN)
    hardest = difficulty(tables["tasks"]).head(_SHOWN)
    rows = [["nearest", f"{a} → {b}", number(value)] for a, b, value in near]
    rows += [["farthest", f"{a} → {b}", number(value)] for a, b, value in far]
    rows += [["hardest", str(r.task), number(r.norm)] for r in hardest.itertuples()]
    tasks, seeds = _counts(tables)
    title = f"{tasks} tasks, {seeds} {'seed' if seeds == 1 else 'seeds'}; distance: {config.distance}"
    return Headline(title, Table(["", "tasks", "distance or norm"], rows), _notes(config, tables))


def nearest_and_farthest(distances: pd.DataFrame, count: int) -> tuple[list[tuple[str, str, float]], ...]:
    """Return the pairs of tasks with the smallest and those with the greatest distance, as (from, to, distance).

    Of a pair, the direction that is shorter, or longer, counts. Pairs with no known distance are left out.
    """
    names = list(distances.index)
    matrix = distances.to_numpy()
    near, far = [], []
    for i in range(len(names)):
        for j in range(i):
            there, back = (names[j], names[i], matrix[j, i]), (names[i], names[j], matrix[i, j])
            near.append(min(there, back, key=_value))
            far.append(max(there, back, key=_value))
    near.sort(key=_value)
    far.sort(key=_value, reverse=True)
    return near[:count], far[:count]


def _value(pair: tuple[str, str, float]) -> float:
    return pair[2]


def _own_distances(config: TaskMap, tables: Tables) -> pd.DataFrame:
    """Return the distances that the config chose, of the tasks between which all are known."""
    return complete_part(square(tables["distances"], config.distance))


def _counts(tables: Tables) -> tuple[int, int]:
    return tables["tasks"]["task"].nunique(), tables["tasks"]["seed"].nunique()


def _introduction(config: TaskMap, tables: Tables) -> str:
    tasks, seeds = _counts(tables)
    options = config.embedding
    images = f"{options.data} images"
    if options.parts > 1:
        images += f", dealt out in {options.parts} parts, a part for each seed"
    if options.per_class is not None:
        images += f", at most {options.per_class} of each class, drawn from the seed"
    return (
        f"{tasks} tasks of {len(config.streams)} streams were embedded by {_network(config, tables)}, with "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, from their {images}. A head is fitted to each task on the "
        f"frozen network; the embedding is the mean Fisher information of each filter (labels: {options.labels}, "
        f"weight_decay of the head {options.weight_decay:g}, β = {options.beta:g}). "
        "Tasks that need the same filters lie near each other. Source: Achille et al. 2019, Task2Vec." + _unused(config)
    )


def _network(config: TaskMap, tables: Tables) -> str:
    own = tables["probe"].iloc[0]
    name = f"the network {config.probe_network.model.name} with {own['filters']} filters"
    if config.probe_network.benchmark is None:
        return f"{name}, which was not trained here"
    data = " and ".join(_name(spec) for spec in config.probe_network.benchmark.datasets_used().values())
    trained = f"{name}, trained on {data or config.probe_network.benchmark.stream}"
    return f"{trained} (test accuracy {percent(own['accuracy'])} %)" if not pd.isna(own["accuracy"]) else trained


def _name(spec: str | dict[str, object]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name"))


def _unused(config: TaskMap) -> str:
    """Return a note if there are parts of the images that no seed embeds."""
    used = {seed % config.embedding.parts for seed in config.seed_list()}
    left = config.embedding.parts - len(used)
    return (
        f" {left} of the {config.embedding.parts} parts of the images are not used: there are few seeds."
        if left
        else ""
    )


def _retrieval(config: TaskMap, tables: Tables) -> list[Section]:
    if "retrieval" not in tables or tables["retrieval"].empty:
        return []
    own = tables["retrieval"]
    text = (
        "Is the nearest embedding of another seed one of the same task? The share of embeddings, percent, with its "
        "95 % interval (Wilson). The interval counts embeddings as independent, which those of one map are not."
        + _overlap(config)
    )
    rows = [
        [r.distance.replace("_", " "), percent(r.share, r.ci_low, r.ci_high), str(r.n), percent(r.chance)]
        for r in own.itertuples()
    ]
    return [Section("Retrieval", text, Table(["distance", "found again", "embeddings", "by chance"], rows))]


def _overlap(config: TaskMap) -> str:
    """Return a warning where embeddings of several seeds are made of the same images."""
    pairs = same_images(config)
    if pairs:
        first, second = pairs[0]
        return f" Seeds {first} and {second} embed the same images: they differ in the estimator's draws alone."
    if config.embedding.per_class is not None and config.embedding.parts < len(config.seed_list()):
        return " Images are drawn anew for each seed, so that seeds may share some."
    return ""


def _maps(config: TaskMap, tables: Tables) -> list[Section]:
    text = (
        "Each point is a task; points that are near are alike. Classical scaling keeps distances as well as two axes "
        "can; the title says how much of the variance that is. t-SNE keeps neighbours: distances between groups, and "
        "the groups' sizes, mean nothing. The axes have no meaning of their own."
    )
    known = set(tables["map"]["task"])
    left_out = tables["tasks"]["task"].nunique() - len(known)
    if left_out:
        text += f" {left_out} tasks are left out: some of their distances are not known, because embeddings diverged."
    return [Section("Map", text, figures=["map_scaling", "map_tsne"])]


def _distances(config: TaskMap, tables: Tables) -> list[Section]:
    near, far = nearest_and_farthest(_own_distances(config, tables), _LISTED)
    unit = f", {UNITS[config.distance]}" if config.distance in UNITS else ""
    rows = [
        [f"{a} → {b}", number(value), f"{c} → {d}", number(other)]
        for (a, b, value), (c, d, other) in zip(near, far, strict=True)
    ]
    text = (
        f"Distance: {config.distance.replace('_', ' ')}{unit}, mean over seeds. {READING[config.distance]} "
        "These pairs are the extremes of all: that one is nearer than the next is not tested. distances.csv has all "
        "pairs, by every distance."
    )
    table = Table(["nearest", "distance", "farthest", "distance"], rows)
    clustered = Section("Clusters", "Average linkage; tasks in the order of the tree.", figures=["heat_map"])
    return [Section("Distances", text, table), clustered]


def _difficulty(config: TaskMap, tables: Tables) -> Section:
    seeds = tables["tasks"]["seed"].nunique()
    text = (
        "The norm of the embedding, in nats per squared unit of weight: how much the task depends on the network's "
        "weights. Complexity is the cosine distance from the trivial task, from 0 to 1; accuracy, percent, is the "
        "fitted head's, on the images that are embedded. "
        + intervals(seeds, f"Mean over {seeds} seeds with the 95 % interval.")
        + few_seeds(seeds)
    )
    rows = [
        [r.task, r.stream, number(r.norm, r.ci_low, r.ci_high), number(r.complexity), percent(r.head_accuracy)]
        for r in difficulty(tables["tasks"]).itertuples()
    ]
    headings = ["task", "stream", "norm", "complexity", "accuracy"]
    return Section("Difficulty", text, Table(headings, rows), ["difficulty"])


def _orders(tables: Tables) -> Section:
    orders = {name: list(own["task"]) for name, own in tables["orders"].groupby("order", sort=False)}
    text = (
        "Curriculum: by complexity, the least first. Least typical: by the mean distance to the other tasks, the "
        "greatest first. Neighbours in an order may be tied within the spread over seeds."
    )
    rows = [
        [str(place), first, second] for place, (first, second) in enumerate(zip(*orders.values(), strict=True), start=1)
    ]
    return Section("Orders", text, Table(["place", "curriculum", "least typical first"], rows))


def _notes(config: TaskMap, tables: Tables) -> list[str]:
    notes = [f"embedded by {_network(config, tables)}"]
    if "retrieval" in tables:
        for r in tables["retrieval"].itertuples():
            if r.distance == config.distance:
                found = percent(r.share, r.ci_low, r.ci_high)
                notes.append(
                    f"retrieval: {found} % of {r.n} embeddings are nearest to the same task of another seed; "
                    f"by chance {percent(r.chance)} %{_overlap(config)}"
                )
    return notes
