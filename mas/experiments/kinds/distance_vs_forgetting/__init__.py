"""``experiment: distance_vs_forgetting``: hold the distances between tasks against what is forgotten."""

from mas.experiments.kind import Kind
from mas.experiments.kinds.distance_vs_forgetting.config import DistanceVsForgetting, check
from mas.experiments.kinds.distance_vs_forgetting.figures import figures
from mas.experiments.kinds.distance_vs_forgetting.page import headline, page
from mas.experiments.kinds.distance_vs_forgetting.plan import plan
from mas.experiments.kinds.distance_vs_forgetting.tables import tables
from mas.experiments.kinds.distance_vs_forgetting.trial import trial
from mas.experiments.scores import acc_score

DISTANCE_VS_FORGETTING = Kind(
    name="distance_vs_forgetting",
    config=DistanceVsForgetting,
    check=check,
    trial=trial,
    plan=plan,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=acc_score,
)
