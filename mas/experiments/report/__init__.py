"""From tables to files that people read: figures and one self-contained page a run."""
