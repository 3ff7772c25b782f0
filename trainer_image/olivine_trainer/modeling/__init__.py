"""The base model: loaded, and called so that only learned positions pay for the head."""
