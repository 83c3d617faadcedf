"""Tables."""

import pandas as pd

from mas.experiments.kinds.distance_vs_forgetting.config import EMBEDDINGS, DistanceVsForgetting
from mas.experiments.results import Results
from mas.experiments.scores import summary_table
from mas.experiments.tables import results_table


def tables(config: DistanceVsForgetting, results: Results) -> dict[str, pd.DataFrame]:
    """Return every table of a run."""
    trained = [record for record in results.records if record.label != EMBEDDINGS]
    return {"results": results_table(trained), "summary": summary_table(trained)}
