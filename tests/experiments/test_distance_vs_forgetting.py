"""``experiment: distance_vs_forgetting``: its cells, its tables against plain loops, its figures and its page."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from mas.experiments import embedding
from mas.experiments.build import build_benchmark
from mas.experiments.cell import EmbeddingSettings
from mas.experiments.errors import UserError
from mas.experiments.jobs import run_cell
from mas.experiments.kinds.distance_vs_forgetting.figures import best_distance, figures
from mas.experiments.kinds.distance_vs_forgetting.page import answers, headline, page
from mas.experiments.kinds.distance_vs_forgetting.plan import plan
from mas.experiments.kinds.distance_vs_forgetting.tables import CORRELATION_COLUMNS, correlations_table, tables
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord, EmbeddingRecord, Outcome
from mas.experiments.report.drawing import png
from mas.experiments.results import Results
from mas.experiments.runner import run_experiment
from mas.experiments.statistics import holm, rank_correlation, rank_correlation_difference
from mas.forgetting import forgetting_scores
from mas.task2vec import DISTANCES, TaskEmbedding
from tests.experiments.builders import without_time

STRATEGIES = ["naive", "mas", "ewc"]
TASKS = 3


def make_data(**changes):
    return {
        "experiment": "distance_vs_forgetting",
        "benchmark": {"stream": "mixture", "datasets": ["digits"], "experiences": TASKS, "train": 40, "test": 40},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"epochs": 1, "batch_size": 20},
        "strategies": [{"name": "naive"}, {"name": "mas", "lam": 1.0}, {"name": "ewc", "lam": 1.0}],
        "probe_network": {"model": {"name": "small_cnn", "width": 2, "hidden": 4}},
        "embedding": {"labels": "exact"},
        "seeds": 4,
    } | changes


def make_config(**changes):
    return load_config(make_data(**changes), try_data=False)


def made_up_outcome(cell, draw):
    """Return what a cell could have left: accuracies, or embeddings."""
    if not isinstance(cell.settings, EmbeddingSettings):
        return Outcome(untrained=[0.5] * TASKS, accuracy=draw.uniform(0.5, 1, (TASKS, TASKS)).tolist(), seconds=1.0)
    embeddings = []
    for task in range(TASKS):
        vector = torch.from_numpy(draw.exponential(size=5))
        scale = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
        own = TaskEmbedding(vector, scale, "probe", task=f"task {task}", samples=10, classes=2)
        embeddings.append(EmbeddingRecord.of(own))
    return Outcome(embeddings=embeddings)


@pytest.fixture(scope="module")
def config():
    return make_config()


@pytest.fixture(scope="module")
def records(config):
    draw = np.random.default_rng(0)
    plan = Plan(config)
    cells = sorted(plan.cells({}), key=lambda cell: plan.labels.index(cell.label))
    return [CellRecord(cell, made_up_outcome(cell, draw)) for cell in cells]


@pytest.fixture(scope="module")
def made(config, records):
    return tables(config, Results(records))


def outcome_of(records, label, seed):
    (found,) = [record.outcome for record in records if (record.label, record.seed) == (label, seed)]
    return found


def embeddings_of(records, seed):
    return [own.embedding() for own in outcome_of(records, "task2vec", seed).embeddings]


class TestConfigAndPlan:
    def test_a_cell_for_each_strategy_and_one_that_embeds(self, config):
        assert [run.label for run in plan(config)] == ["naive", "mas", "ewc", "from_scratch", "task2vec"]
        assert config.distances == list(DISTANCES)

    def test_from_scratch_is_planned_once(self):
        config = make_config(strategies=[{"name": "from_scratch"}, {"name": "naive"}])
        assert [run.label for run in plan(config)] == ["from_scratch", "naive", "task2vec"]

    @pytest.mark.parametrize(
        ("strategies", "message"),
        [
            ([{"name": "mas"}], "strategies: found no naive, with which protection is compared; add - {name: naive}"),
            (
                [{"name": "naive"}, {"name": "mas", "label": "task2vec"}],
                "strategies[1]: found the label 'task2vec', which the embeddings have; give another label",
            ),
            (
                [{"name": "naive"}, {"name": "naive", "label": "plain"}],
                "strategies: found naive as naive, plain; allowed: once, without a label",
            ),
            (
                [{"name": "naive"}, {"name": "mas", "label": "from_scratch"}],
                "strategies: found the label 'from_scratch'; allowed: for the strategy from_scratch alone",
            ),
            (
                [{"name": "naive"}, {"name": "joint"}],
                "strategies[1]: joint trains all experiences at once and forgets none; leave it out",
            ),
            (
                [{"name": "naive"}, {"name": "mas", "lam": {"select": "continual"}}],
                "strategies[1]: found lam to choose continually; allowed: a number",
            ),
        ],
    )
    def test_strategies_that_make_no_sense_are_refused(self, strategies, message):
        with pytest.raises(UserError) as error:
            make_config(strategies=strategies)
        assert str(error.value).endswith(message)

    def test_weights_are_not_kept(self):
        with pytest.raises(UserError, match="save_model: found true; allowed: false, since cells that embed"):
            make_config(save_model=True)

    def test_one_experience_is_refused(self):
        data = make_data()
        data["benchmark"]["experiences"] = 1
        with pytest.raises(UserError, match="benchmark: found one experience, which leaves nothing to forget"):
            load_config(data)

    def test_a_probe_network_that_does_not_fit_is_refused(self):
        with pytest.raises(UserError, match="probe_network"):
            load_config(make_data(probe_network={"model": {"name": "resnet50", "width": 3}}))

    @pytest.mark.parametrize("seed", [0, 3])
    def test_the_embedded_stream_is_that_of_the_strategies(self, config, seed, monkeypatch):
        """Also the images: those that the embedding gets are those that naive trains on."""
        seen = []
        monkeypatch.setattr(embedding, "embed", lambda probe, batches, task, **options: seen.append((task, batches)))
        monkeypatch.setattr(EmbeddingRecord, "of", lambda made: None)
        cells = {cell.label: cell for cell in Plan(config).cells({}) if cell.seed == seed}
        run_cell(cells["task2vec"])
        stream = build_benchmark(cells["naive"].training, seed).train_stream
        assert len(seen) == len(stream) == TASKS
        for (_, batches), experience in zip(seen, stream, strict=True):
            data = experience.dataset.eval()
            x, y, *_ = data.batch(range(len(data)))
            assert torch.equal(torch.cat([own for own, _ in batches]), x)
            assert torch.equal(torch.cat([own for _, own in batches]), y)


class TestTables:
    def test_streams_by_a_loop(self, records, made):
        streams = made["streams"]
        assert len(streams) == 4 * len(STRATEGIES)
        for row in streams.to_dict("records"):
            tasks = embeddings_of(records, row["seed"])
            scores = forgetting_scores(outcome_of(records, row["strategy"], row["seed"]).matrix())
            assert row["ACC"] == pytest.approx(scores["ACC"], abs=1e-12)
            assert row["forgetting"] == pytest.approx(scores["forgetting"], abs=1e-12)
            assert row["mean_norm"] == pytest.approx(sum(float(e.vector.sum()) for e in tasks) / TASKS, abs=1e-12)
            for name, distance in DISTANCES.items():
                to_trivial = sum(distance(e, e.trivial()) for e in tasks)
                to_next = sum(distance(a, b) for a, b in pairwise(tasks))
                assert row[f"complexity_{name}"] == pytest.approx(to_trivial, abs=1e-12)
                assert row[f"heterogeneity_{name}"] == pytest.approx(to_next, abs=1e-12)

    def test_steps_by_a_loop(self, records, made):
        steps = made["steps"].set_index(["seed", "strategy", "earlier", "learned"])
        count = 0
        for seed in range(4):
            tasks = embeddings_of(records, seed)
            naive, scratch = (outcome_of(records, label, seed).accuracy for label in ("naive", "from_scratch"))
            for strategy in STRATEGIES:
                r = outcome_of(records, strategy, seed).accuracy
                for t in range(TASKS):
                    for i in range(t):
                        count += 1
                        row = steps.loc[(seed, strategy, i, t)]
                        assert row["drop"] == pytest.approx(r[t - 1][i] - r[t][i], abs=1e-12)
                        expected = naive[t][t] - scratch[t][t] if i == t - 1 else np.nan
                        assert row["transfer"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
                        assert (row["earlier_task"], row["learned_task"]) == (tasks[i].task, tasks[t].task)
                        assert row["norm_earlier"] == tasks[i].norm
                        assert row["norm_learned"] == tasks[t].norm
                        for name, distance in DISTANCES.items():
                            there, back = distance(tasks[i], tasks[t]), distance(tasks[t], tasks[i])
                            if name in ("asymmetric", "kl"):
                                assert row[f"{name}_forward"] == pytest.approx(there, abs=1e-12)
                                assert row[f"{name}_backward"] == pytest.approx(back, abs=1e-12)
                            else:
                                assert row[name] == pytest.approx(there, abs=1e-12) == pytest.approx(back, abs=1e-12)
        assert len(steps) == count

    def test_equal_drops_are_ties(self, config, records):
        """In floating point 0.9 − 0.8 is not 0.6 − 0.5; a rank correlation must not see that."""
        changed = [CellRecord(r.cell, Outcome(**vars(r.outcome))) for r in records]
        for record in changed:
            if record.label == "naive":
                record.outcome.accuracy = [[0.9, 0.5, 0.5], [0.8, 0.6, 0.5], [0.7, 0.5, 0.5]]
        steps = tables(config, Results(changed))["steps"]
        assert steps[steps["strategy"] == "naive"]["drop"].nunique() == 1

    def test_correlations_are_scipys(self, made):
        correlations = made["correlations"]
        assert list(correlations.columns) == CORRELATION_COLUMNS
        for row in correlations.itertuples():
            table = made["streams" if row.level == "stream" else "steps"]
            own = table[table["strategy"] == row.strategy].dropna(subset=row.outcome)
            assert row.n == len(own)
            assert row.rho == pytest.approx(stats.spearmanr(own[row.score], own[row.outcome]).statistic, abs=1e-12)
            found = rank_correlation(own[row.score], own[row.outcome], own["seed"])
            assert (row.ci_low, row.ci_high, row.p) == pytest.approx((found.ci_low, found.ci_high, found.p))

    def test_every_score_has_a_row_for_each_strategy_and_outcome(self, made):
        counts = made["correlations"].groupby(["level", "outcome", "strategy"]).size().to_dict()
        step, stream = len(DISTANCES) + 2 + 2, 2 * len(DISTANCES) + 1  # two distances have two directions
        expected = {("step", "drop", s): step for s in STRATEGIES} | {("step", "transfer", "naive"): step}
        expected |= {("stream", outcome, s): stream for outcome in ("forgetting", "ACC") for s in STRATEGIES}
        assert counts == expected

    def test_differences_are_paired_with_naive(self, made):
        correlations = made["correlations"]
        assert correlations[correlations["strategy"] == "naive"]["difference"].isna().all()
        for row in correlations[correlations["strategy"] != "naive"].itertuples():
            table = made["streams" if row.level == "stream" else "steps"]
            own, naive = (table[table["strategy"] == name] for name in (row.strategy, "naive"))
            found = rank_correlation_difference(own[row.score], own[row.outcome], naive[row.outcome], own["seed"])
            named = (row.difference, row.difference_ci_low, row.difference_ci_high, row.difference_p)
            assert named == pytest.approx((found.rho, found.ci_low, found.ci_high, found.p))

    def test_holm_adjusts_within_level_and_outcome(self, made):
        for _, own in made["correlations"].groupby(["level", "outcome"]):
            assert own["p_holm"].to_numpy() == pytest.approx(holm(own["p"]))
            assert own["difference_p_holm"].to_numpy() == pytest.approx(holm(own["difference_p"]), nan_ok=True)

    def test_diverged_cells_enter_nothing(self, config, records, made):
        """Naive of seed 1 diverged: its rows and its transfer go, and the others are compared without it."""
        changed = [CellRecord(r.cell, Outcome(**vars(r.outcome))) for r in records]
        (lost,) = [r for r in changed if (r.label, r.seed) == ("naive", 1)]
        lost.outcome.status = "diverged"
        found = tables(config, Results(changed))
        steps = found["steps"]
        assert set(steps[steps["strategy"] == "naive"]["seed"]) == {0, 2, 3}
        assert steps[(steps["strategy"] == "mas") & (steps["seed"] == 1)]["transfer"].isna().all()
        rows = found["correlations"].set_index(["strategy", "score", "outcome"])
        whole = made["correlations"].set_index(["strategy", "score", "outcome"])
        key = ("mas", "cosine", "drop")
        assert rows.loc[key, "rho"] == whole.loc[key, "rho"]
        own = steps[(steps["strategy"] == "mas") & (steps["seed"] != 1)]
        naive = steps[steps["strategy"] == "naive"]
        rhos = [stats.spearmanr(table["cosine"], table["drop"]).statistic for table in (own, naive)]
        assert rows.loc[key, "difference"] == pytest.approx(rhos[0] - rhos[1], abs=1e-12)

    def test_streams_without_embeddings_are_left_out(self, config, records):
        fewer = [r for r in records if (r.label, r.seed) != ("task2vec", 2)]
        assert set(tables(config, Results(fewer))["streams"]["seed"]) == {0, 1, 3}

    def test_distances_can_be_chosen(self, records):
        found = tables(make_config(distances=["kl"]), Results(records))["correlations"]
        steps = found[found["level"] == "step"]
        assert set(steps["score"]) == {"kl_forward", "kl_backward", "norm_earlier", "norm_learned"}


class TestReport:
    def test_figures_are_drawn_from_the_tables(self, config, made):
        drawn = figures(config, made)
        assert list(drawn) == ["drop", "correlations_step", "correlations_stream", "streams"]
        assert png(drawn["correlations_step"]) == png(figures(config, made)["correlations_step"])
        first = drawn["drop"].axes[0]
        steps = made["steps"][made["steps"]["strategy"] == "naive"]
        best = best_distance(made["correlations"])
        points = np.array(first.collections[0].get_offsets())
        assert points == pytest.approx(np.column_stack([steps[best], 100 * steps["drop"]]))

    def test_the_best_distance_is_the_strongest_with_naives_drop(self, made):
        own = made["correlations"]
        rows = own[(own["strategy"] == "naive") & (own["outcome"] == "drop")]
        strongest = max((abs(r.rho), r.score) for r in rows.itertuples() if not r.score.startswith("norm"))[1]
        assert best_distance(own) == strongest

    def test_the_page_says_what_is_clear(self, config, made):
        steps = made["steps"].copy()
        steps["drop"] = np.where(steps["strategy"] == "naive", steps["cosine"], steps["drop"])
        steps["transfer"] = np.nan
        streams = made["streams"]
        changed = made | {"steps": steps, "correlations": correlations_table(streams, steps)}
        pair, stream, transfer, protection = answers(changed["correlations"])
        assert "the strongest is cosine (ρ 1.00 [1.00, 1.00])" in pair
        assert pair.startswith("Forgetting by naive training, pair by pair: clear correlations with ")
        assert "stream by stream: no clear correlation with any of 13 scores" in stream
        assert transfer == "Transfer to the next task: not measured."
        assert "mas changes it by -" in protection
        shown = page(config, changed)
        assert "4 random streams" in shown.introduction
        assert headline(config, changed).notes == [pair, stream, transfer, protection]

    def test_nothing_finished_can_be_shown(self, config):
        empty = tables(config, Results([]))
        assert figures(config, empty) == {}
        assert "0 random streams" in page(config, empty).introduction
        assert headline(config, empty).table.rows == []

    def test_one_seed_has_no_interval(self, config, records):
        single = tables(config, Results([r for r in records if r.seed == 0]))
        steps = single["correlations"][single["correlations"]["level"] == "step"]
        assert steps["rho"].notna().all()
        assert steps["p"].isna().all()
        assert list(figures(config, single)) == ["drop", "correlations_step", "correlations_stream", "streams"]


def test_law_9_workers_cannot_matter(tmp_path):
    config = load_config(make_data(seeds=1, strategies=[{"name": "naive"}]))
    one, two = (run_experiment(config, tmp_path / str(n), workers=n) for n in (1, 2))
    assert [r.label for r in one.results.records] == ["naive", "from_scratch", "task2vec"]
    assert [without_time(r) for r in one.results.records] == [without_time(r) for r in two.results.records]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("benchmark.classes=1", "found task .* with one class; a task to embed has two classes or more"),
        ("embedding.parts=100000", "embedding.parts: found 100000, but a class of task .* allowed: at most"),
    ],
)
@pytest.mark.parametrize("name", ["distance_vs_forgetting_digits", "expert_selection_digits"])
def test_tasks_that_cannot_be_embedded_are_refused(name, change, message):
    if name == "expert_selection_digits" and change.startswith("benchmark"):
        change = "benchmark={stream: split, dataset: digits, experiences: 10, scenario: class}"
    with pytest.raises(UserError, match=message):
        load_config(Path("configs") / f"{name}.yaml", [change])
