"""Names for the objects of Avalanche that travel between modules. Avalanche is typed in part, so each is Any."""

from typing import Any

Benchmark = Any  # with train_stream and test_stream
Experience = Any  # one experience of a stream
Stream = Any  # a sequence of experiences
Strategy = Any  # a training template with plugins, ours or Avalanche's
Data = Any  # a data set with task labels
Clock = Any  # a strategy's counts of experiences, epochs and iterations
