"""Implements the benchmark behind `scripts/bench`: a fast upstream, a load generator, the variants, and the report."""
