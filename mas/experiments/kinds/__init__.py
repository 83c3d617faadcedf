"""The kinds of experiment, a folder each: config, plan, tables, figures, page."""
