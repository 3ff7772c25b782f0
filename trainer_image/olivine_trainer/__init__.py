"""The trainer: what runs in the pods."""
