"""What keeps folders of runs in order: status, clean, verify, merge."""
