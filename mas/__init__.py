"""mas: memory-aware synapses and other measures based on per-sample gradients.

The core is in three files, best read in this order:

    mas/gradients.py     per_sample_moments: sums over samples of |g| or g squared, exact
    mas/importance.py    MAS and Fisher importance: a few lines each over the engine
    mas/penalty.py       QuadraticPenalty: keep important weights near their anchor

Modules are imported on first use, so that ``import mas`` and ``mas --help`` are fast.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mas import benchmarks as benchmarks
    from mas import experiments as experiments
    from mas import strategies as strategies
    from mas.forgetting import forgetting_scores as forgetting_scores
    from mas.gradients import mean_moments as mean_moments
    from mas.gradients import per_sample_moments as per_sample_moments
    from mas.importance import fisher_importance as fisher_importance
    from mas.importance import mas_importance as mas_importance
    from mas.importance import random_importance as random_importance
    from mas.importance import uniform_importance as uniform_importance
    from mas.information import accuracy_information_curve as accuracy_information_curve
    from mas.information import accuracy_under_noise as accuracy_under_noise
    from mas.information import by_layer as by_layer
    from mas.information import fisher_trace as fisher_trace
    from mas.information import information_in_weights as information_in_weights
    from mas.information import layer_shares as layer_shares
    from mas.information import posterior_std as posterior_std
    from mas.information import share_shift as share_shift
    from mas.local import local_mas_importance as local_mas_importance
    from mas.path_integral import PathIntegral as PathIntegral
    from mas.path_integral import RiemannianWalk as RiemannianWalk
    from mas.penalty import QuadraticPenalty as QuadraticPenalty
    from mas.plasticity import dead_units as dead_units
    from mas.plasticity import dormant_units as dormant_units
    from mas.plasticity import effective_rank as effective_rank
    from mas.plasticity import features as features
    from mas.plasticity import gradient_norm as gradient_norm
    from mas.plasticity import mean_weight as mean_weight
    from mas.plasticity import stable_rank as stable_rank
    from mas.plasticity import trainability as trainability
    from mas.plasticity import unit_activity as unit_activity
    from mas.state import preserving_state as preserving_state
    from mas.task2vec import Reachability as Reachability
    from mas.task2vec import SelectionScore as SelectionScore
    from mas.task2vec import TaskEmbedding as TaskEmbedding
    from mas.task2vec import asymmetric_distance as asymmetric_distance
    from mas.task2vec import correlation_distance as correlation_distance
    from mas.task2vec import cosine_distance as cosine_distance
    from mas.task2vec import curriculum_order as curriculum_order
    from mas.task2vec import distance_matrix as distance_matrix
    from mas.task2vec import embed as embed
    from mas.task2vec import head_accuracy as head_accuracy
    from mas.task2vec import jensen_shannon as jensen_shannon
    from mas.task2vec import kl_divergence as kl_divergence
    from mas.task2vec import least_typical_order as least_typical_order
    from mas.task2vec import normalized_cosine_distance as normalized_cosine_distance
    from mas.task2vec import rank_experts as rank_experts
    from mas.task2vec import reachability as reachability
    from mas.task2vec import selection_score as selection_score
    from mas.task2vec import stream_complexity as stream_complexity
    from mas.task2vec import stream_heterogeneity as stream_heterogeneity

_HOME = {
    # the engine
    "per_sample_moments": "mas.gradients",
    "mean_moments": "mas.gradients",
    "preserving_state": "mas.state",
    # which weights matter
    "mas_importance": "mas.importance",
    "local_mas_importance": "mas.local",
    "fisher_importance": "mas.importance",
    "uniform_importance": "mas.importance",
    "random_importance": "mas.importance",
    # the same, accumulated during training
    "PathIntegral": "mas.path_integral",
    "RiemannianWalk": "mas.path_integral",
    # protect these weights
    "QuadraticPenalty": "mas.penalty",
    # information in the weights
    "fisher_trace": "mas.information",
    "by_layer": "mas.information",
    "layer_shares": "mas.information",
    "share_shift": "mas.information",
    "information_in_weights": "mas.information",
    "posterior_std": "mas.information",
    "accuracy_under_noise": "mas.information",
    "accuracy_information_curve": "mas.information",
    # plasticity
    "dead_units": "mas.plasticity",
    "dormant_units": "mas.plasticity",
    "effective_rank": "mas.plasticity",
    "features": "mas.plasticity",
    "gradient_norm": "mas.plasticity",
    "mean_weight": "mas.plasticity",
    "stable_rank": "mas.plasticity",
    "trainability": "mas.plasticity",
    "unit_activity": "mas.plasticity",
    # distances between tasks
    "TaskEmbedding": "mas.task2vec",
    "embed": "mas.task2vec",
    "distance_matrix": "mas.task2vec",
    "cosine_distance": "mas.task2vec",
    "asymmetric_distance": "mas.task2vec",
    "normalized_cosine_distance": "mas.task2vec",
    "kl_divergence": "mas.task2vec",
    "jensen_shannon": "mas.task2vec",
    "correlation_distance": "mas.task2vec",
    "stream_complexity": "mas.task2vec",
    "stream_heterogeneity": "mas.task2vec",
    "curriculum_order": "mas.task2vec",
    "least_typical_order": "mas.task2vec",
    "rank_experts": "mas.task2vec",
    "SelectionScore": "mas.task2vec",
    "selection_score": "mas.task2vec",
    "Reachability": "mas.task2vec",
    "reachability": "mas.task2vec",
    "head_accuracy": "mas.task2vec",
    # continual-learning scores
    "forgetting_scores": "mas.forgetting",
}
_LAYERS = ("strategies", "benchmarks", "experiments")  # these need Avalanche and import it on first use
_RENAMED = {"measuring": "preserving_state"}  # old name -> new one

__all__ = [  # noqa: PLE0604 - the tables above are the single list of names
    *_HOME,
    *_LAYERS,
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _RENAMED:
        warnings.warn(f"mas.{name} is now called mas.{_RENAMED[name]}", FutureWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name in _LAYERS:
        return import_module(f"mas.{name}")
    raise AttributeError(f"module 'mas' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
