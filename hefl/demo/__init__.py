"""Whole federations on this machine: the demo, the benchmark, and parties that lie."""
