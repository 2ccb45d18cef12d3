"""Main paths on another device than the CPU: a CUDA device where there is one, and one that is made up."""
