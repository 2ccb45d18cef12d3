"""A model -> a file that runs without netgraft: written, opened again and compared before it stands anywhere."""
