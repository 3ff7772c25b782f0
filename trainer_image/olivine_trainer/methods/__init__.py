"""Methods of adaptation: what is trained, and how it is published."""
