"""Configs: typed models of what a YAML file may say, reading it, and saying what is wrong with it.

`schema` has the models that all kinds of experiment share; each kind adds its own. `load` reads a file
by way of `yaml_source` (keys with their lines), `search` (values to choose from), `complaints` (what
is wrong, in plain words) and `trial` (build everything once).
"""
