"""Benchmarks and experiments: ``pytest bench`` for timings, ``python -m bench.<name>`` for the rest."""
