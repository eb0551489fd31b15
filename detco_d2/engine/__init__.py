"""Losses -> weights: the trainers, their hooks, and the start of processes."""
