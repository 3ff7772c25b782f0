"""Measuring: the same code for the base and the tuned model."""
