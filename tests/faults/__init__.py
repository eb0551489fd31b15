"""Faults, injected for real, and what must then hold."""
