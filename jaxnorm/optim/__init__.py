"""Any optimizer in the coordinates of the neurons, and other optimizer tools."""
