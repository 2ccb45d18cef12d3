"""One model -> a chain of blocks that is proven equal to it."""
