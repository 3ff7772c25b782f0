"""The contract between users, operator and trainer, as pydantic models: the source of crds/ and of the API reference."""
