"""What is known of a neuron's inputs: weighted sums, moments, tracked statistics."""
