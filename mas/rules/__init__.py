"""Closed forms: per-sample gradients of a layer's parameters, from its input and output gradient.

`RULES` lists the torch functions with a closed form, `EXPANSIONS` those that are first rewritten in
simpler functions. All other functions are exact too, but slower (`mas.fallback`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mas.rules.convolution import CONVOLUTION, TRANSPOSED
from mas.rules.elementwise import ADD, EXPAND, MULTIPLY, PRELU, REPEAT
from mas.rules.embedding import EMBEDDING
from mas.rules.expansions import EXPANSIONS
from mas.rules.linear import LINEAR, MATMUL
from mas.rules.normalization import BATCH_NORM, GROUP_NORM, INSTANCE_NORM, LAYER_NORM, RMS_NORM
from mas.rules.rule import Arguments, Rule

__all__ = ["EXPANSIONS", "RULES", "Rule", "refusal"]

RULES: dict[Any, Rule] = {
    F.linear: LINEAR,
    **dict.fromkeys((torch.matmul, Tensor.matmul, torch.mm, Tensor.mm), MATMUL),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), CONVOLUTION),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), TRANSPOSED),
    F.batch_norm: BATCH_NORM,
    F.instance_norm: INSTANCE_NORM,
    F.group_norm: GROUP_NORM,
    F.layer_norm: LAYER_NORM,
    F.rms_norm: RMS_NORM,
    F.embedding: EMBEDDING,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_), ADD),
    **dict.fromkeys((torch.mul, Tensor.mul), MULTIPLY),
    **dict.fromkeys((Tensor.expand, Tensor.expand_as), EXPAND),
    Tensor.repeat: REPEAT,
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), PRELU),
}


def refusal(func: Any, a: Arguments) -> str | None:
    """Return why a call has no per-sample gradient, or changes the weights; None if it has one and does not."""
    if func is F.batch_norm and a.get("training"):
        return (
            "batch statistics mix the samples of a batch; "
            "use running statistics (track_running_stats=True, eval mode), GroupNorm or LayerNorm"
        )
    if func is F.embedding and a.get("max_norm") is not None:
        return "max_norm rewrites the weights while they are measured; normalise them beforehand and set max_norm=None"
    return None
