"""Names and paths -> images, few-shot subsets, seeded views."""
