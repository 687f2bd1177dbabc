"""The backward pass of a layer: the one custom rule that every layer goes through."""
