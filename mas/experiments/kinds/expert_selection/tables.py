import pandas as pd
def tables(config, results):
    return {"errors": pd.DataFrame([(r.label, r.seed, *a) for r in results.records for a in r.outcome.accuracy])}
