"""Networks and strategies as an experiment builds them, from plain settings."""

from mas.experiments.build import make_strategy, model_for
from mas.experiments.cell import CellTraining
from mas.experiments.config.schema import MODEL_MODELS, STRATEGY_MODELS
from mas.strategies import STRATEGIES


def built_strategy(kind, model, training, **options):
    """Return a strategy of a class of ours, with the random streams of seed 0."""
    name = next(name for name, strategy in STRATEGIES.items() if strategy is kind)
    chosen = STRATEGY_MODELS[name](name=name, **options)
    return make_strategy(chosen, model, CellTraining.model_validate(training), 0)


def built_mlp(benchmark, hidden):
    """Return a multilayer perceptron for a benchmark, with the initial weights of seed 0."""
    options = MODEL_MODELS["mlp"](name="mlp", hidden=[hidden], head="shared")
    return model_for(benchmark, options, 0)
