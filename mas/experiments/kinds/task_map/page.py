"""What people read of a map of tasks."""

from mas.experiments.kind import Tables
from mas.experiments.kinds.task_map.config import TaskMap
from mas.experiments.report.sections import Headline, Page, Section, Table


def page(config: TaskMap, tables: Tables) -> Page:
    """Return the page of a run."""
    return Page("a map of tasks", "", [Section("Tasks", table=_tasks(tables))])


def headline(config: TaskMap, tables: Tables) -> Headline:
    """Return what a terminal shows of a run."""
    return Headline("tasks", _tasks(tables))


def _tasks(tables: Tables) -> Table:
    own = tables["tasks"]
    rows = [[str(value) for value in row] for row in own.itertuples(index=False)]
    return Table(list(own.columns), rows)
