def figures(config, tables): return {}
