"""Figures of `docs/task2vec.md`, drawn from the tables beside them.

Usage: python -m tools.task_map_figures
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mas.experiments.report.drawing import blank, colour, png

DOCS = Path("docs/task2vec")
GROUPS = {"all": "MNIST and Fashion-MNIST", "ids": "Tiny-ImageNet, by id", "tree": "Tiny-ImageNet, by the tree"}
# "asymmetric" is left out: it retrieves as "cosine" does
SHOWN = ("cosine", "normalized_cosine", "kl", "jensen_shannon", "correlation")


def draw_retrieval(table: pd.DataFrame) -> Figure:
    """Return the share of tasks whose other half is nearest, over the images of each class, a panel for each group.

    Args:
        table: rows of ``retrieval.csv`` of one estimator.
    """
    groups = list(table.groupby("stream", sort=False))
    figure, panels = blank(4.0 * len(groups), 3.6, columns=len(groups))
    for axes, (stream, own) in zip(panels, groups, strict=True):
        for number, distance in enumerate(SHOWN):
            line = own[own["distance"] == distance].sort_values("per_class")
            below, above = line["share"] - line["share_low"], line["share_high"] - line["share"]
            bars = 100 * np.vstack([below, above]).clip(min=0)
            place = line["per_class"] * 1.03 ** (number - 2)  # so that bars do not cover each other
            style = {"marker": "o", "ms": 4, "capsize": 2, "color": colour(number), "label": distance}
            axes.errorbar(place, 100 * line["share"], bars, **style)
        axes.axhline(95, color="0.5", linestyle=":")
        heading = f"{GROUPS[str(stream)]}: {own['tasks'].iloc[0]} tasks"
        axes.set(title=heading, xlabel="images of each class", xscale="log", ylim=(0, 103))
        ticks = sorted(own["per_class"].unique())
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("other half is the nearest, percent")
    panels[-1].legend(fontsize=8)
    return figure


def draw_semantics(pairs: pd.DataFrame, correlations: dict[str, str]) -> Figure:
    """Return semantic distance against Task2Vec's for pairs of tasks, a panel for each stream.

    Args:
        pairs: columns stream, steps and cosine.
        correlations: by the stream, what its title says.
    """
    groups = list(pairs.groupby("stream", sort=False))
    figure, panels = blank(4.2 * len(groups), 3.8, columns=len(groups))
    for axes, (stream, own) in zip(panels, groups, strict=True):
        axes.scatter(own["steps"], own["cosine"], s=5 if len(own) < 5000 else 1, alpha=0.4, linewidths=0)
        axes.set(title=f"{stream}\n{correlations[str(stream)]}", xlabel="steps in WordNet, mean over pairs of classes")
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("cosine distance of the embeddings")
    return figure


def main() -> None:
    """Draw every figure."""
    pairs = pd.read_csv(DOCS / "pairs.csv")
    correlations = pd.read_csv(DOCS / "semantics.csv")
    (DOCS / "semantics.png").write_bytes(png(draw_semantics(pairs, _titles(correlations))))
    tables = [pd.read_csv(DOCS / f"retrieval_{name}.csv") for name in ("mnist_fashion", "tiny_imagenet")]
    together, apart = tables[0]["stream"].eq("all"), tables[1]["stream"].ne("all")
    shown = pd.concat([tables[0][together], tables[1][apart]])
    drawn = draw_retrieval(shown[shown["labels"].eq("hutchinson")])
    (DOCS / "retrieval.png").write_bytes(png(drawn))


def _titles(correlations: pd.DataFrame) -> dict[str, str]:
    """Return by the stream its correlation with the number of steps, in words."""
    kept = (
        correlations["classes"].eq("all") & correlations["semantic"].eq("path") & correlations["distance"].eq("cosine")
    )
    rows = correlations[kept].itertuples()
    return {row.stream: f"ρ = {row.rho:.2f} [{row.rho_low:.2f}, {row.rho_high:.2f}]" for row in rows}


if __name__ == "__main__":
    main()
