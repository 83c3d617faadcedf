"""Configs: typed models of what a YAML file may say, and the parts that read one.

`schema` has the models that all kinds of experiment share; each kind adds its own. `yaml_source` reads a
file and knows the line of each key, `search` finds the values to choose from, `checks` holds checks that several
kinds share, and `complaints` says what is wrong in plain words. `mas.experiments.read_config` ties them together.
"""
