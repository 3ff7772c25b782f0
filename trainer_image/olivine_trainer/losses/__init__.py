"""What training minimises: built-in losses of the learned tokens, and the user's own class."""
