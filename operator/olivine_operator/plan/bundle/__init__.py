"""The plan of an AdapterBundle: which adapters there are, whether a build is due, and how it goes."""
