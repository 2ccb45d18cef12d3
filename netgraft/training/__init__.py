"""The only place where a plan is carried out."""
