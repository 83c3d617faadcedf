"""``experiment: task_map``: embed tasks by Task2Vec, and show which are alike."""

from mas.experiments.kind import Kind
from mas.experiments.kinds.task_map.config import TaskMap, check
from mas.experiments.kinds.task_map.figures import figures
from mas.experiments.kinds.task_map.page import headline, page
from mas.experiments.kinds.task_map.plan import plan
from mas.experiments.kinds.task_map.tables import files, score, tables
from mas.experiments.kinds.task_map.trial import trial

TASK_MAP = Kind(
    name="task_map",
    config=TaskMap,
    check=check,
    trial=trial,
    plan=plan,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=score,
    files=files,
)
"""What a config of ``experiment: task_map`` may say."""
