"""The benchmarks of scripts/bench, a file for each target."""
