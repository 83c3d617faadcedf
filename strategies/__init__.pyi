# Written by tools/strategy_stub.py; do not edit.
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from mas.annotations import Count, Fraction, NonNegative, Positive
from mas.strategies.baselines import FromScratchPlugin, GEMPlugin, LwFPlugin
from mas.strategies.measured_data import Data, DataName
from mas.strategies.plugins import (
    EWCPlugin,
    ImportancePlugin,
    L2Plugin,
    LocalMASPlugin,
    MASPlugin,
    OnlineEWCPlugin,
    RandomPlugin,
    RWalkPlugin,
    SIPlugin,
)
from mas.strategies.probes import PROBES, ProbePlugin, Schedule

class Naive(SupervisedTemplate):
    """Train on one experience after another and protect nothing: the floor."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
    ) -> None: ...

class Joint(SupervisedTemplate):
    """Train once on all experiences together, shuffled: the ceiling."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
    ) -> None: ...

class MAS(Naive):
    """Memory Aware Synapses: protect what the output is sensitive to; needs no labels (Aljundi 2018)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        norm: Literal["squared_l2", "l2"] = "squared_l2",
        accumulate: Literal["sum", "ema", "decay"] = "sum",
        factor: Fraction = 0.5,
        reduction: Literal["sample", "batch"] = "sample",
        parameters: Literal["all", "backbone"] = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ) -> None: ...

class LocalMAS(Naive):
    """Local MAS: importance from each layer's own output, in forward passes only (Aljundi 2018)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        accumulate: Literal["sum", "ema", "decay"] = "sum",
        factor: Fraction = 0.5,
        parameters: Literal["all", "backbone"] = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ) -> None: ...

class EWC(Naive):
    """Elastic Weight Consolidation: protect by Fisher information of past experiences (Kirkpatrick 2017)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 100.0,
        labels: Literal["exact", "sampled", "empirical", "predicted", "hutchinson"] = "exact",
        mode: Literal["separate", "online"] = "separate",
        decay: Fraction = 1.0,
        reduction: Literal["sample", "batch"] = "sample",
        parameters: Literal["all", "backbone"] = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ) -> None: ...

class OnlineEWC(Naive):
    """Online EWC: one running Fisher information and the latest anchor (Schwarz 2018)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 100.0,
        labels: Literal["exact", "sampled", "empirical", "predicted", "hutchinson"] = "exact",
        decay: Fraction = 0.95,
        reduction: Literal["sample", "batch"] = "sample",
        parameters: Literal["all", "backbone"] = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ) -> None: ...

class SI(Naive):
    """Synaptic Intelligence: importance gathered along the path of training (Zenke 2017)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        damping: Positive = 0.1,
        parameters: Literal["all", "backbone"] = "all",
    ) -> None: ...

class RWalk(Naive):
    """Riemannian Walk: Fisher information and path integral together (Chaudhry 2018)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        alpha: Fraction = 0.9,
        interval: Count = 10,
        damping: Positive = 0.1,
        parameters: Literal["all", "backbone"] = "all",
    ) -> None: ...

class L2(Naive):
    """L2 to the last anchor: protect all weights equally, a control."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        parameters: Literal["all", "backbone"] = "all",
    ) -> None: ...

class Random(Naive):
    """Random importance: protect weights at random, a control."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        lam: NonNegative = 1.0,
        values: Literal["uniform", "mas"] = "uniform",
        accumulate: Literal["sum", "ema", "decay"] = "sum",
        factor: Fraction = 0.5,
        parameters: Literal["all", "backbone"] = "all",
        data: Data = "train",
        max_samples: Count | None = None,
    ) -> None: ...

class FromScratch(Naive):
    """From scratch: learn each experience from the initial weights, as if it were the first: no transfer."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
    ) -> None: ...

class Cumulative(SupervisedTemplate):
    """Train on all data so far in each experience, from the weights of the one before: a ceiling."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
    ) -> None: ...

class LwF(Naive):
    """Learning without Forgetting: distil the network as it was into the one that learns (Li and Hoiem 2016)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        alpha: NonNegative = 1.0,
        temperature: Positive = 2.0,
    ) -> None: ...

class Replay(Naive):
    """Replay: add as many stored samples to each batch (Rolnick 2019; Avalanche's buffer)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        mem_size: Count = 200,
    ) -> None: ...

class GEM(Naive):
    """Gradient Episodic Memory: gradients may not raise the loss on any stored experience (Lopez-Paz 2017)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        patterns_per_experience: Count = 100,
        memory_strength: NonNegative = 0.5,
    ) -> None: ...

class AGEM(Naive):
    """Averaged GEM: gradients may not raise the loss on a draw of all stored samples (Chaudhry 2019)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        patterns_per_experience: Count = 100,
        sample_size: Count = 64,
    ) -> None: ...

class DERpp(SupervisedTemplate):
    """DER++: replay with stored outputs as well as labels (Buzzega 2020, as Avalanche has it)."""
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[..., Tensor] = ...,
        *,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = ...,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
        mem_size: Count = 200,
        alpha: NonNegative = 0.1,
        beta: NonNegative = 0.5,
        batch_size_mem: Count | None = None,
    ) -> None: ...

STRATEGIES: dict[str, type[SupervisedTemplate]]
__all__ = [
    "AGEM",
    "EWC",
    "GEM",
    "L2",
    "MAS",
    "PROBES",
    "SI",
    "STRATEGIES",
    "Cumulative",
    "DERpp",
    "DataName",
    "EWCPlugin",
    "FromScratch",
    "FromScratchPlugin",
    "GEMPlugin",
    "ImportancePlugin",
    "Joint",
    "L2Plugin",
    "LocalMAS",
    "LocalMASPlugin",
    "LwF",
    "LwFPlugin",
    "MASPlugin",
    "Naive",
    "OnlineEWC",
    "OnlineEWCPlugin",
    "ProbePlugin",
    "RWalk",
    "RWalkPlugin",
    "Random",
    "RandomPlugin",
    "Replay",
    "SIPlugin",
    "Schedule",
]
