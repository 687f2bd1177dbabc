"""What a layer computes: operations that are linear in their kernel."""
