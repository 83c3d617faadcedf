"""The speed table: `make bench` measures it, and writes docs/benchmarks.json and docs/benchmarks.md."""
