"""Benchmarks: `kernels`, `tables`, `ports` and `chain`, each a module with `run(options) -> rows`."""
