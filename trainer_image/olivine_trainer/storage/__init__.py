"""Object storage: a typed store, credentials by role, and the layout and rules of a run's folder."""
