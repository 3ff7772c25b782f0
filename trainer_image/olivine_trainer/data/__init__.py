"""Rows: read, split, rendered by a template, turned into tokens, and drawn into batches by step."""
