"""The ranks of one attempt: how they find one another, what they tell one another, how they notice that one is lost."""
