"""Avalanche's own methods, for comparison with ours; broken ones are repaired."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.models import DynamicModule, MultiTaskModule
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.plugins import AGEMPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.plugins import GEMPlugin as AvalancheGEMPlugin
from avalanche.training.plugins import LwFPlugin as AvalancheLwFPlugin
from avalanche.training.supervised import Cumulative as AvalancheCumulative
from avalanche.training.supervised import der
from avalanche.training.templates import SupervisedTemplate
from scipy.optimize import nnls
from torch import Tensor, nn

from mas.annotations import Count, NonNegative, Positive
from mas.strategies.supervised import Criterion, Naive, as_avalanche, on_plugin


class LwFPlugin(AvalancheLwFPlugin):
    """Learning without Forgetting with the teacher in eval mode: Avalanche's keeps updating its BatchNorm statistics.

    Args:
        alpha: weight of the distillation loss.
        temperature: of its softmax.
    """

    def __init__(self, alpha: NonNegative = 1.0, temperature: Positive = 2.0):
        super().__init__(alpha, temperature)

    def after_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Copy the current model as the teacher."""
        super().after_training_exp(strategy, *args, **kwargs)
        self.lwf.prev_model.eval().requires_grad_(False)


class GEMPlugin(AvalancheGEMPlugin):
    """Gradient Episodic Memory, with its quadratic program solved by SciPy: Avalanche needs an optional solver.

    Args:
        patterns_per_experience: samples stored of each experience.
        memory_strength: the margin γ.
    """

    def __init__(self, patterns_per_experience: Count = 100, memory_strength: NonNegative = 0.5):
        super().__init__(patterns_per_experience, memory_strength)

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """Return the gradient nearest to ``g`` that does not point against the memories' gradients.

        Solve min ½ vᵀ P v + (M g)ᵀ v with v ≥ margin and P = M Mᵀ + 10⁻³ 1. With v = s + margin and
        P = L Lᵀ this is non-negative least squares, min ‖Lᵀ s + L⁻¹ (M g + P margin)‖
        (Lopez-Paz 2017, eq. 11).
        """
        memory = self.G.double()
        gradient = g.double()
        memory_products = (memory @ memory.T).cpu().numpy()
        p = memory_products + 1e-3 * np.eye(len(memory))
        root = np.linalg.cholesky(p)
        margin = np.full(len(memory), self.memory_strength)
        linear = (memory @ gradient).cpu().numpy() + p @ margin
        target = np.linalg.solve(root, linear)
        solution, _ = nnls(root.T, -target)
        v = torch.as_tensor(solution + margin).to(memory)
        projected: Tensor = v @ memory + gradient
        return projected.to(g.dtype)


class FromScratchPlugin(SupervisedPlugin[SupervisedTemplate]):
    """Before each experience, set the network back to its initial weights, and forget the optimizer's state.

    Buffers, such as the statistics of BatchNorm, are set back too. A part of the network that is added
    for an experience, such as a head, has its own initial weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.untrained: nn.Module | None = None  # grows as the network does, and is never trained

    def before_training_exp(self, strategy: SupervisedTemplate, *args: object, **kwargs: object) -> None:
        """Set network and optimizer back."""
        if self.untrained is None:
            self.untrained = deepcopy(strategy.model)
        else:
            _adapt_without_draws(self.untrained, strategy.experience)
        strategy.model.load_state_dict(self.untrained.state_dict())
        strategy.make_optimizer(reset_optimizer_state=True)


def _adapt_without_draws(model: nn.Module, experience: Any) -> None:
    """Add to a model what an experience needs; the global random stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        avalanche_model_adaptation(model.train(), experience)


class _AGEMPlugin(AGEMPlugin):
    def __init__(self, patterns_per_experience: Count = 100, sample_size: Count = 64):
        super().__init__(patterns_per_experience, sample_size)

    def on_restore(self) -> None:
        """Make the loader of stored samples anew, after the plugin's state was restored."""
        if self.buffers:
            size = self.sample_size // len(self.buffers)
            self.buffer_dataloader = GroupBalancedInfiniteDataLoader(
                self.buffers, batch_size=size, num_workers=0, pin_memory=False, persistent_workers=False
            )
            self.buffer_dliter = iter(self.buffer_dataloader)


class _ReplayPlugin(ReplayPlugin):
    def __init__(self, mem_size: Count = 200):
        super().__init__(mem_size)


@as_avalanche
class FromScratch(Naive):
    """From scratch: learn each experience from the initial weights, as if it were the first: no transfer."""

    __init__ = on_plugin(FromScratchPlugin)


@as_avalanche
class LwF(Naive):
    """Learning without Forgetting: distil the network as it was into the one that learns (Li and Hoiem 2016)."""

    __init__ = on_plugin(LwFPlugin)


@as_avalanche
class Replay(Naive):
    """Replay: add as many stored samples to each batch (Rolnick 2019; Avalanche's buffer)."""

    __init__ = on_plugin(_ReplayPlugin)


@as_avalanche
class GEM(Naive):
    """Gradient Episodic Memory: gradients may not raise the loss on any stored experience (Lopez-Paz 2017)."""

    __init__ = on_plugin(GEMPlugin)


@as_avalanche
class AGEM(Naive):
    """Averaged GEM: gradients may not raise the loss on a draw of all stored samples (Chaudhry 2019)."""

    __init__ = on_plugin(_AGEMPlugin)


@as_avalanche
class DERpp(der.DER):
    """DER++: replay with stored outputs as well as labels (Buzzega 2020, as Avalanche has it)."""

    def __init__(
        self,
        *,
        mem_size: Count = 200,
        alpha: NonNegative = 0.1,
        beta: NonNegative = 0.5,
        batch_size_mem: Count | None = None,
        criterion: Criterion | None = None,
        **arguments: Any,
    ):
        """Take the size of the memory and the weights of outputs (α) and labels (β), beside Avalanche's arguments."""
        _check_outputs_can_be_stored(arguments.get("model"))
        super().__init__(
            mem_size=mem_size,
            alpha=alpha,
            beta=beta,
            batch_size_mem=batch_size_mem,
            criterion=criterion or nn.CrossEntropyLoss(),
            **arguments,
        )


def _check_outputs_can_be_stored(model: nn.Module | None) -> None:
    if isinstance(model, MultiTaskModule):
        raise ValueError("DER++ stores outputs without task labels; use the scenario domain or class")
    if isinstance(model, nn.Module) and any(isinstance(module, DynamicModule) for module in model.modules()):
        raise ValueError("DER++ stores outputs, whose number cannot grow; use head: shared")


@as_avalanche
class Cumulative(AvalancheCumulative):
    """Train on all data so far in each experience, from the weights of the one before: a ceiling."""

    def __init__(self, *, criterion: Criterion | None = None, **arguments: Any):
        """Take Avalanche's arguments; the loss is cross-entropy by default."""
        super().__init__(criterion=criterion or nn.CrossEntropyLoss(), **arguments)
