"""Benchmarks: each prints one JSON object. `make bench`, or `python -m bench NAME --help`."""
