"""Simulated hardware: nothing in here is real, and nothing in the daemon imports it."""
