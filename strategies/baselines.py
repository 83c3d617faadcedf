"""Avalanche's own methods beside ours, mended where they are broken, so that ours stand in context."""

from typing import Any

import numpy as np
import torch
from avalanche.models import DynamicModule, MultiTaskModule
from avalanche.training.plugins import AGEMPlugin, ReplayPlugin
from avalanche.training.plugins import GEMPlugin as AvalancheGEMPlugin
from avalanche.training.plugins import LwFPlugin as AvalancheLwFPlugin
from avalanche.training.supervised import Cumulative as AvalancheCumulative
from avalanche.training.supervised import der
from scipy.optimize import nnls
from torch import Tensor, nn

from mas.annotations import Count, NonNegative, Positive
from mas.strategies.supervised import Naive, as_avalanche, on_plugin


class LwFPlugin(AvalancheLwFPlugin):
    """Learning without Forgetting, its teacher in eval mode: Avalanche's goes on moving its BatchNorm statistics.

    Args:
        alpha: weight of the distillation.
        temperature: of its softmax.
    """

    def __init__(self, alpha: NonNegative = 1.0, temperature: Positive = 2.0):
        super().__init__(alpha, temperature)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the model as it stands for the teacher."""
        super().after_training_exp(strategy, *args, **kwargs)
        self.lwf.prev_model.eval().requires_grad_(False)


class GEMPlugin(AvalancheGEMPlugin):
    """Gradient Episodic Memory, its quadratic program solved by SciPy: Avalanche needs a solver that may be absent.

    Args:
        patterns_per_experience: samples stored of each experience.
        memory_strength: the margin γ.
    """

    def __init__(self, patterns_per_experience: Count = 100, memory_strength: NonNegative = 0.5):
        super().__init__(patterns_per_experience, memory_strength)

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """Give the gradient nearest to ``g`` that does not point against the memories' gradients.

        min ½ vᵀ P v + (M g)ᵀ v, v ≥ margin, P = M Mᵀ + 10⁻³ 1; with v = s + margin and P = L Lᵀ it is
        non-negative least squares, min ‖Lᵀ s + L⁻¹ (M g + P margin)‖ (Lopez-Paz 2017, eq. 11).
        """
        memory = self.G.double()
        p = (memory @ memory.T).cpu().numpy() + 1e-3 * np.eye(len(memory))
        root = np.linalg.cholesky(p)
        margin = np.full(len(memory), self.memory_strength)
        target = np.linalg.solve(root, (memory @ g.double()).cpu().numpy() + p @ margin)
        v = nnls(root.T, -target)[0] + margin
        return (torch.as_tensor(v).to(memory) @ memory + g.double()).to(g.dtype)


class _AGEMPlugin(AGEMPlugin):
    def __init__(self, patterns_per_experience: Count = 100, sample_size: Count = 64):
        super().__init__(patterns_per_experience, sample_size)


class _ReplayPlugin(ReplayPlugin):
    def __init__(self, mem_size: Count = 200):
        super().__init__(mem_size)


@as_avalanche
class LwF(Naive):
    """Learning without Forgetting: distil the network as it was into the one that learns (Li and Hoiem 2016)."""

    __init__ = on_plugin(LwFPlugin)


@as_avalanche
class Replay(Naive):
    """Replay: each batch has as many stored samples beside it (Rolnick 2019; Avalanche's buffer)."""

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
        criterion: Any = None,
        **arguments: Any,
    ):
        """Take the size of the memory and the weights of outputs (α) and labels (β), beside Avalanche's arguments."""
        if isinstance(arguments.get("model"), MultiTaskModule):
            raise ValueError("DER++ stores outputs without task labels; use the scenario domain or class")
        if any(isinstance(m, DynamicModule) for m in getattr(arguments.get("model"), "modules", list)()):
            raise ValueError("DER++ stores outputs, whose number cannot grow; use head: shared")
        super().__init__(
            mem_size=mem_size,
            alpha=alpha,
            beta=beta,
            batch_size_mem=batch_size_mem,
            criterion=criterion or nn.CrossEntropyLoss(),
            **arguments,
        )


@as_avalanche
class Cumulative(AvalancheCumulative):
    """Train on all data so far in each experience, from the weights of the one before: a ceiling."""

    def __init__(self, *, criterion: Any = None, **arguments: Any):
        """Take Avalanche's arguments; the loss is cross-entropy by default."""
        super().__init__(criterion=criterion or nn.CrossEntropyLoss(), **arguments)
