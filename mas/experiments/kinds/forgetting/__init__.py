"""``experiment: forgetting``: train strategies along a stream and see who forgets what."""

from mas.experiments.kind import Kind
from mas.experiments.kinds.forgetting.config import Forgetting, check
from mas.experiments.kinds.forgetting.figures import figures
from mas.experiments.kinds.forgetting.page import headline, page
from mas.experiments.kinds.forgetting.plan import plan
from mas.experiments.kinds.forgetting.scores import compare
from mas.experiments.kinds.forgetting.tables import tables
from mas.experiments.kinds.forgetting.trial import trial
from mas.experiments.scores import acc_score

FORGETTING = Kind(
    name="forgetting",
    config=Forgetting,
    check=check,
    trial=trial,
    plan=plan,
    selection=lambda config: config.selection,
    tables=tables,
    figures=figures,
    page=page,
    headline=headline,
    score=acc_score,
    compare=compare,
)
