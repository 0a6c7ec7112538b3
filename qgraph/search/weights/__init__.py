"""Searches layer by layer in how many bits, and in which groups, the weights of a model are kept."""
