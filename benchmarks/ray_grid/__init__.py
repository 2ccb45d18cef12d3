"""A grid on a Ray cluster of several nodes, one of which is killed, against the same grid without a cluster."""
