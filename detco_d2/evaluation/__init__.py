"""Weights -> numbers and pictures."""
