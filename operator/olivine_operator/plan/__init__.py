"""Decisions: pure functions of what was observed, a clock reading and the settings. No kopf, no network, no clock."""
