"""What every law is tried on: layers, whole models, estimators. A new one is a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.models import MTSimpleMLP, SlimResNet18
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from mas.importance import DRAWN, fisher_importance, mas_importance
from tests import models
from tests.oracles.moments import fisher_by_loop, mas_by_loop

N = 6  # samples; a batch is as large as a sequence is long, so that shapes alone cannot tell them apart


@dataclass
class Case:
    """A model in float64, a batch for it and how to run it."""

    model: nn.Module
    batch: Any
    forward: Callable[[nn.Module, Any], Any] | None = None


def _squeeze_parameters(model: nn.Module) -> nn.Module:
    """Set buffers and affine parameters to values other than their trivial initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for p in model.parameters():
        nn.init.normal_(p, std=min(0.4, 2 / (p.numel() / len(p)) ** 0.5) if p.ndim > 1 else 0.4)
    return model


class Twice(nn.Module):
    """One layer called twice in a forward pass."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too, once as a module and once by hand."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.embedding = nn.Embedding(9, 5, padding_idx=2)
        self.middle = nn.Linear(5, 5)
        self.out = nn.Linear(5, 9)
        self.by_hand = by_hand
        if not by_hand:
            self.out.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.middle(self.embedding(words)).tanh()
        return h @ self.embedding.weight.T if self.by_hand else self.out(h)


class Scaled(nn.Module):
    """Free parameters between layers that have closed forms."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(5))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale * self.first(x).relu())


class SequenceFirst(nn.Module):
    """Linear on (time, sample, feature): the sample axis is not the first."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, 3)
        return self.out(self.norm(self.inner(x.transpose(0, 1)).tanh()).mean(0))


class Flattened(nn.Module):
    """Samples and time in one axis, as many language models have it."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return self.out(self.inner(x.reshape(n * t, -1)).tanh().reshape(n, t, -1).sum(1))


class Recurrent(nn.Module):
    """An LSTM classifier on its last step, batch first."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Gated(nn.Module):
    """A GRU, or another recurrent layer, on all of its outputs and its last state."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.out = layer, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        steps, last = self.layer(x.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        return self.out(torch.cat([steps.sum(0), last[-1]], 1))


class Cells(nn.Module):
    """A recurrent cell, stepped by hand."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell, self.out = cell, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.out(h[0] if isinstance(h, tuple) else h)


class SelfAttention(nn.Module):
    def __init__(self, **options: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class CrossAttention(nn.Module):
    """Learned queries attend to the sample: the packed projection is used in parts."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.ones(1, 2, 4))
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.attention(self.queries.repeat(len(x), 1, 1), x, x)
        return self.out(found.sum(1))


class LowRank(nn.Module):
    """A frozen weight with a trained low-rank addition (LoRA), and one weight seen from both sides."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(2, 4))
        self.both = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.frozen.weight + self.a @ self.b, self.frozen.bias).tanh()
        return F.linear(h, self.both) * (h @ self.both) + h @ self.both[:, 1:2]


class Positions(nn.Module):
    """What vision transformers add: class token, positions, LayerScale, a learned temperature."""

    def __init__(self, expand: str):
        super().__init__()
        self.token, self.place = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 9, 4))
        self.scale, self.temperature = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(()))
        self.inner, self.out, self.expand = nn.Linear(4, 4), nn.Linear(4, 3), expand

    def forward(self, x: Tensor) -> Tensor:  # (N, T, 4)
        size = (len(x), 1, 1)
        token = self.token.expand(len(x), -1, -1) if self.expand == "expand" else self.token.repeat(*size)
        x = torch.cat([token, x], 1)
        x += self.place[:, : x.shape[1]]
        x = x + self.scale * self.inner(x).tanh()
        return self.temperature.exp() * self.out(x[:, 0])


class SequenceFirstPositions(nn.Module):
    """Positions added to (time, sample, feature), and a table of positions that no sample indexes."""

    def __init__(self):
        super().__init__()
        self.place, self.table = nn.Parameter(torch.ones(N, 1, 3)), nn.Embedding(N, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, 3), N = T
        x = x.transpose(0, 1) + self.place
        x = (x * self.place).tanh() + self.table(torch.arange(x.shape[0]))[:, None]
        return self.out(x.sum(0))


class Frames(nn.Module):
    """Samples and frames in one axis, as video models have it; or frames and samples."""

    def __init__(self, frames_first: bool):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(12, 2)
        self.frames_first = frames_first

    def forward(self, x: Tensor) -> Tensor:  # (N, frames, 2, 3, 3)
        x = x.transpose(0, 1) if self.frames_first else x
        h = self.out(self.norm(self.conv(x.flatten(0, 1))).tanh().flatten(1)).unflatten(0, x.shape[:2])
        return h.sum(0 if self.frames_first else 1)


class Branching(nn.Module):
    """Control flow that depends on the data: vmap cannot follow, the loop can."""

    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.weight * row if row.sum().item() > 0 else row for row in x]))


class Sliced(nn.Module):
    """A layer's weight used whole by the layer, and in part by hand."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :2] * F.linear(x, self.layer.weight[:2])


class Checkpointed(nn.Module):
    """Activations computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(checkpoint(lambda h: self.inner(h).tanh(), x, use_reentrant=False))


class OwnVmap(nn.Module):
    """A model that uses vmap itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.layer)(x)


class Residual(nn.Module):
    """A ResNet block in small: in-place activations, additions, strides."""

    def __init__(self):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.short = nn.Conv2d(2, 4, 1, stride=2)
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn_b(self.b(self.relu(self.bn_a(self.a(x)))))
        h += self.short(x)
        return self.out(self.relu(h).mean((2, 3)))


class TwoTasks(nn.Module):
    """Heads chosen by a task label in the batch, both in one batch."""

    def __init__(self):
        super().__init__()
        self.body, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        h, out = self.body(x).tanh(), x.new_zeros(len(x), 3)
        for t in task.unique().tolist():
            out[task == t] = self.heads[t](h[task == t])
        return out


class By(nn.Module):
    """A model written as one function of its parts and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _added_to_a_view(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x)
    h[:, :2].add_(m.shift)
    return h.tanh()


def _force(m: Any, x: Tensor) -> Tensor:
    """Return forces: the gradient of a network's output, so that the objective's is a second one."""
    x = x.detach().requires_grad_()
    (force,) = torch.autograd.grad(m.out(m.layer(x).tanh()).sum(), x, create_graph=True)
    return force


def _own_gradient(m: Any, x: Tensor) -> Tensor:
    """Return the gradient of a weight, sample by sample as it must be."""
    each = [torch.autograd.grad(m.layer(row).tanh().sum(), m.layer.weight, create_graph=True)[0] for row in x]
    return torch.stack(each)


def _sorted_and_back(m: Any, x: Tensor) -> Tensor:
    """Encode two parts of the input by one layer, each sorted by its own key."""

    def encode(part: Tensor) -> Tensor:
        order = part[:, 0].argsort()
        return m.layer(part[order])[order.argsort()]

    return encode(x[:, :2]) * encode(x[:, 2:])


def _flipped_and_back(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) + m.layer(x.flip(0)).flip(0).square()


def _experts(m: Any, x: Tensor) -> Tensor:
    """Send each token to the expert that fits it; the numbers of tokens may equal any other number."""
    tokens = x.reshape(-1, 2)
    choice, out = (2 * tokens[:, 0]).round().clamp(-1, 1).long() + 1, torch.zeros_like(tokens)
    for e, expert in enumerate(m.experts):
        rows = (choice == e).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(tokens[rows]))
    return out.reshape(x.shape)


def flat(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64)


def words() -> Tensor:
    return torch.randint(9, (N, N))


def ending(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


# name -> () -> (model, batch) or (model, batch, forward)
CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (nn.Linear(4, 3), flat(4)),
    "linear_no_bias": lambda: (nn.Linear(4, 3, bias=False), flat(4)),
    "linear_sequence": lambda: (ending(nn.Linear(4, 3), nn.Tanh()), flat(N, 4)),
    "linear_sequence_4d": lambda: (ending(nn.Linear(4, 3), nn.Tanh()), flat(2, 3, 4)),
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), flat(4)),
    "conv1d": lambda: (ending(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(inplace=True)), flat(2, 7)),
    "conv2d": lambda: (ending(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True)), flat(2, 5, 5)),
    "conv2d_all": lambda: (ending(nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)), flat(4, 7, 6)),
    "conv2d_same": lambda: (ending(nn.Conv2d(2, 3, 3, padding="same")), flat(2, 5, 5)),
    "conv2d_same_even": lambda: (ending(nn.Conv2d(2, 3, 2, padding="same")), flat(2, 5, 5)),
    "conv2d_same_dilated": lambda: (ending(nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(3, 2))), flat(2, 5, 5)),
    "conv1d_valid": lambda: (ending(nn.Conv1d(2, 3, 3, padding="valid")), flat(2, 5)),
    "conv2d_circular": lambda: (ending(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), flat(2, 5, 5)),
    "conv3d": lambda: (ending(nn.Conv3d(2, 3, 2, padding=1)), flat(2, 3, 3, 3)),
    "conv2d_reflect": lambda: (ending(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), flat(2, 5, 5)),
    "conv_transpose1d": lambda: (ending(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1)), flat(2, 4)),
    "conv_transpose2d": lambda: (ending(nn.ConvTranspose2d(2, 3, 3, stride=2)), flat(2, 3, 3)),
    "conv_transpose2d_all": lambda: (
        ending(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2)),
        flat(4, 3, 3),
    ),
    "frames": lambda: (Frames(frames_first=False), flat(2, 2, 3, 3)),
    "frames_first": lambda: (Frames(frames_first=True), flat(2, 2, 3, 3)),
    "batch_norm1d": lambda: (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)), flat(4)),
    "batch_norm2d": lambda: (ending(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), flat(2, 5, 5)),
    "layer_norm": lambda: (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), flat(4)),
    "layer_norm_2_axes": lambda: (ending(nn.LayerNorm((3, 4)), nn.Tanh()), flat(2, 3, 4)),
    "rms_norm": lambda: (nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Linear(5, 3)), flat(4)),
    "rms_norm_sequence": lambda: (ending(nn.RMSNorm((3, 4)), nn.Tanh()), flat(2, 3, 4)),
    "instance_norm1d": lambda: (ending(nn.InstanceNorm1d(3, affine=True), nn.Tanh()), flat(3, 5)),
    "instance_norm_running": lambda: (
        ending(nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.Tanh()),
        flat(2, 3, 3),
    ),
    "prelu": lambda: (nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3)), flat(4)),
    "prelu_channels": lambda: (ending(nn.PReLU(2)), flat(2, 3, 3)),
    "group_norm": lambda: (ending(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), flat(2, 5, 5)),
    "embedding": lambda: (ending(nn.Embedding(9, 4, padding_idx=-1), nn.Tanh()), words()),
    "embedding_by_frequency": lambda: (ending(nn.Embedding(9, 4, scale_grad_by_freq=False), nn.Tanh()), words()),
    "twice_linear": lambda: (Twice(nn.Linear(4, 4)), flat(4)),
    "twice_conv": lambda: (ending(Twice(nn.Conv2d(2, 2, 3, padding=1))), flat(2, 4, 4)),
    "twice_norm": lambda: (ending(Twice(nn.GroupNorm(1, 2))), flat(2, 4, 4)),
    "tied_modules": lambda: (Tied(by_hand=False), words()),
    "tied_by_hand": lambda: (Tied(by_hand=True), words()),
    "free_parameter": lambda: (Scaled(), flat(4)),
    "sequence_first": lambda: (SequenceFirst(), flat(N, 3)),
    "flattened_time": lambda: (Flattened(), flat(3, 3)),
    "attention": lambda: (
        ending(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, dropout=0.3)),
        flat(N, 4),
    ),
    "attention_bare": lambda: (ending(SelfAttention(bias=False)), flat(N, 4)),
    "attention_all": lambda: (ending(SelfAttention(add_bias_kv=True, add_zero_attn=True)), flat(N, 4)),
    "attention_cross": lambda: (CrossAttention(), flat(N, 4)),
    "lstm": lambda: (Recurrent(), flat(5, 3)),
    "lstm_all": lambda: (Gated(nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)), flat(N, 3)),
    "gru": lambda: (Gated(nn.GRU(3, 4, 2, bidirectional=True)), flat(N, 3)),
    "gru_no_bias": lambda: (Gated(nn.GRU(3, 4, bias=False)), flat(5, 3)),
    "rnn": lambda: (Gated(nn.RNN(3, 4)), flat(5, 3)),
    "rnn_relu": lambda: (Gated(nn.RNN(3, 4, nonlinearity="relu")), flat(5, 3)),
    "lstm_cell": lambda: (Cells(nn.LSTMCell(3, 4)), flat(5, 3)),
    "gru_cell": lambda: (Cells(nn.GRUCell(3, 4)), flat(5, 3)),
    "low_rank": lambda: (LowRank(), flat(4)),
    "positions_expand": lambda: (Positions("expand"), flat(N, 4)),
    "positions_repeat": lambda: (Positions("repeat"), flat(N, 4)),
    "positions_sequence_first": lambda: (SequenceFirstPositions(), flat(N, 3)),
    "branching": lambda: (Branching(), flat(3)),
    "sliced_weight": lambda: (Sliced(), flat(4)),
    "checkpoint": lambda: (Checkpointed(), flat(4)),
    "own_vmap": lambda: (OwnVmap(), flat(4)),
    "weight_norm": lambda: (nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)), flat(4)),
    "instance_norm": lambda: (ending(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True)), flat(2, 5, 5)),
    "residual": lambda: (Residual(), flat(2, 6, 6)),
    "dropout": lambda: (nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)), flat(4)),
    "embedding_one_word": lambda: (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), words()[:, 0]),
    "added_to_a_view": lambda: (
        By(_added_to_a_view, layer=nn.Linear(4, 3), shift=nn.Parameter(torch.rand(2))),
        flat(4),
    ),
    "force": lambda: (By(_force, layer=nn.Linear(4, 5), out=nn.Linear(5, 1)), flat(4)),
    "own_gradient": lambda: (By(_own_gradient, layer=nn.Linear(4, 2)), flat(4)),
    "sorted_and_back": lambda: (By(_sorted_and_back, layer=nn.Linear(2, 3)), flat(4)),
    "flipped_and_back": lambda: (By(_flipped_and_back, layer=nn.Linear(4, 3)), flat(4)),
    "experts": lambda: (By(_experts, experts=nn.ModuleList(nn.Linear(2, 2) for _ in range(3))), flat(2, 2)),
    "complex_filter": lambda: (
        By(
            lambda m, x: torch.fft.irfft(torch.fft.rfft(m.layer(x)) * m.gain),
            layer=nn.Linear(4, 6),
            gain=nn.Parameter(torch.rand(4)),
        ),
        flat(4),
    ),
    "two_tasks": lambda: (
        TwoTasks(),
        (flat(4), torch.zeros(N, dtype=torch.long), torch.tensor([0, 1, 0, 1, 1, 0])),
        lambda model, batch: model(batch[0], batch[2]),
    ),
}


def _two_heads(model: MTSimpleMLP) -> MTSimpleMLP:
    for task in range(2):
        experience = SimpleNamespace(classes_in_this_experience=[0, 1, 2], task_labels=[task])
        model.classifier.adaptation(experience)
    return model


def _in_double(model: nn.Module, batch: Any) -> Tensor:
    """Avalanche's heads write their output into a tensor of the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        return model(batch[0], batch[2])
    finally:
        torch.set_default_dtype(torch.float32)


# Small siblings of models that people train, whole (tests/models.py).
CASES |= {
    "lenet": lambda: (models.lenet(classes=3), flat(1, 28, 28)),
    "small_cnn": lambda: (models.small_cnn(2, 3, 8, classes=3), flat(2, 8, 8)),
    "vit": lambda: (models.vit(8, 4, depth=2, heads=2, width=8, classes=3), flat(3, 8, 8)),
    "gpt": lambda: (models.GPT(9, N, depth=2, heads=2, width=8), words()),
    "lstm_classifier": lambda: (models.LSTMClassifier(9, 4, classes=3), words()),
    "avalanche_mlp": lambda: (
        _two_heads(MTSimpleMLP(4, 5)),
        (flat(4), torch.zeros(N, dtype=torch.long), torch.ones(N, dtype=torch.long)),
        _in_double,
    ),
    "avalanche_slim_resnet": lambda: (SlimResNet18(3, nf=2), flat(3, 32, 32)),
}

SLOW = {  # those without closed forms for all they do
    *("branching", "own_vmap", "two_tasks", "added_to_a_view", "force", "own_gradient", "sorted_and_back"),
    *("flipped_and_back", "experts", "complex_filter"),
}


def make(name: str) -> Case:
    """Build a case, the same every time, in training mode as a training loop leaves it."""
    torch.manual_seed(0)
    model, batch, *forward = CASES[name]()
    run = forward[0] if forward else None
    model.double()
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        with torch.no_grad():  # lets lazy layers take shape
            run(model, batch) if run else model(batch)
    return Case(_squeeze_parameters(model).double().train(), batch, run)


def classes(case: Case) -> Tensor:
    """Return labels for a case, one for each sample."""
    return torch.randint(3, (N,), generator=torch.Generator().manual_seed(1))


def classify(case: Case) -> Case:
    """Make any case a classifier of labelled batches (x, y, ...): logits of shape (N, classes)."""
    run = case.forward or (lambda model, batch: model(batch))
    if isinstance(case.batch, tuple):
        return Case(case.model, (case.batch[0], classes(case) % 3, *case.batch[2:]), _two_axes(run))
    return Case(case.model, (case.batch, classes(case) % 2), _two_axes(lambda m, b: run(m, b[0])))


def _two_axes(run):
    return lambda model, batch: run(model, batch).flatten(1)[:, :4]


# name -> (estimator, oracle), both functions of (model, batches or batch, forward=...)
ESTIMATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mas": (mas_importance, mas_by_loop),
    "mas_l2": (partial(mas_importance, norm="l2"), partial(mas_by_loop, norm="l2")),
    "fisher_exact": (partial(fisher_importance, labels="exact"), partial(fisher_by_loop, labels="exact")),
    "fisher_empirical": (partial(fisher_importance, labels="empirical"), partial(fisher_by_loop, labels="empirical")),
    "fisher_predicted": (partial(fisher_importance, labels="predicted"), partial(fisher_by_loop, labels="predicted")),
}
SAMPLING = {f"fisher_{labels}": partial(fisher_importance, labels=labels) for labels in DRAWN}


def quadratic(output: Any, batch: Any) -> Tensor:
    """An objective with gradients of both signs."""
    flat_output = output.flatten(1)
    return F.softplus(flat_output).square().sum(1) - flat_output.sum(1)
