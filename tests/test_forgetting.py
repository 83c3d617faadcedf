"""Every score against its definition, written out with loops."""

import numpy as np
import pytest

from mas import forgetting_scores


def by_loops(r, untrained, reference):
    """Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018; indices from 0."""
    last, size = len(r) - 1, len(r)
    return {
        "ACC": sum(r[last][i] for i in range(size)) / size,
        "forgetting": sum(max(r[t][i] for t in range(last)) - r[last][i] for i in range(last)) / last,
        "BWT": sum(r[last][i] - r[i][i] for i in range(last)) / last,
        "FWT": sum(r[i - 1][i] - untrained[i] for i in range(1, size)) / last,
        "learning": sum(r[i][i] for i in range(size)) / size,
        "intransigence": sum(reference[i] - r[i][i] for i in range(size)) / size,
    }


@pytest.mark.parametrize("size", [2, 3, 7])
def test_scores_equal_their_definitions(size):
    draw = np.random.default_rng(size)
    matrix, untrained, reference = draw.random((size, size)), draw.random(size), draw.random(size)
    assert forgetting_scores(matrix, untrained, reference) == pytest.approx(
        by_loops(matrix.tolist(), untrained.tolist(), reference.tolist()), rel=1e-12
    )


def test_a_hand_made_matrix():
    scores = forgetting_scores([[0.9, 0.4, 0.5], [0.95, 0.8, 0.6], [0.5, 0.7, 0.9]], [0.5, 0.5, 0.5])
    assert scores["ACC"] == pytest.approx(0.7)
    assert scores["forgetting"] == pytest.approx((0.95 - 0.5 + 0.8 - 0.7) / 2)
    assert scores["BWT"] == pytest.approx((0.5 - 0.9 + 0.7 - 0.8) / 2)
    assert scores["FWT"] == pytest.approx((0.4 - 0.5 + 0.6 - 0.5) / 2)
    assert scores["learning"] == pytest.approx((0.9 + 0.8 + 0.9) / 3)


def test_joint_training_has_only_its_last_row():
    nan = np.nan
    scores = forgetting_scores([[nan, nan], [0.8, 0.9]], [0.1, 0.1])
    assert scores["ACC"] == pytest.approx(0.85)
    assert all(np.isnan(scores[name]) for name in ("forgetting", "BWT", "FWT", "learning"))


def test_one_experience_has_no_past():
    scores = forgetting_scores([[0.8]], [0.1])
    assert scores["ACC"] == scores["learning"] == 0.8
    assert np.isnan([scores[name] for name in ("forgetting", "BWT", "FWT")]).all()


def test_without_the_untrained_network_there_is_no_fwt():
    assert np.isnan(forgetting_scores(np.eye(2))["FWT"])


@pytest.mark.parametrize(
    ("matrix", "untrained", "message"),
    [
        (np.ones((2, 3)), None, r"\(2, 3\)"),
        (np.ones(2), None, r"\(2,\)"),
        ([], None, r"\(0,\)"),
        (np.eye(2), [1.0], r"\(1,\)"),
    ],
)
def test_wrong_shapes_are_refused(matrix, untrained, message):
    with pytest.raises(ValueError, match=message):
        forgetting_scores(matrix, untrained)
