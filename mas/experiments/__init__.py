"""Experiments: YAML in, results and report out.

Read in the order of the data flow: `config` validates a file into typed models, `cells` expands it
to independent runs (`selection`: which settings are tried first), `cell` trains one, `store` keeps
it, `results` reads all back, `summary` derives scores and comparisons, `report` draws. `run` ties
them together. `critical_period` and `consolidated_deficit` say which networks those experiments
train and what their numbers mean; `probed` keeps what probes see.
"""

import warnings

# Avalanche imports a solver package that warns, in every process, of solvers nothing here uses.
warnings.filterwarnings("ignore", message="no QP solver found", module="qpsolvers")
