"""Experiments: YAML in, results and report out.

Read in the order of the data flow: `config` validates a file into typed models, `cells` expands it
to independent runs, `cell` trains one, `store` keeps it, `summary` derives scores, `report` draws.
`run` ties them together.
"""
