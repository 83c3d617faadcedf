"""Engines: where cells are done. Each takes the same tasks and gives the same results."""
