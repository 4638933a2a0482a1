"""Benchmarks against peers that run in the same process or beside it, interleaved with ours."""
