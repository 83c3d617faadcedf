"""Build the parts of a config once, also those by which values are chosen."""

from collections.abc import Sequence

from mas.experiments.cell import CellSettings
from mas.experiments.config.yaml_source import Source
from mas.experiments.kinds.forgetting.config import Forgetting
from mas.experiments.trial import try_held_out, try_training


def trial(config: Forgetting, every: Sequence[CellSettings], source: Source) -> None:
    """Raise UserError if a part of a config cannot be built."""
    try_training(config, every, source)
    try_held_out(config, config.selection, source)
