"""Make a smaller student of one model: follow its channels, choose which to keep, solve the weights that are left."""
