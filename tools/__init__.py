"""What maintainers run: the speed table, the pages of results, figures of the structure."""
