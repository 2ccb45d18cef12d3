"""Names and files -> models, and back."""
