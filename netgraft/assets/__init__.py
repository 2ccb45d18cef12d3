"""Data shipped with the package: the weights of the digits teacher."""
