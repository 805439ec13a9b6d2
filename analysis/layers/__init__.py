"""What a network holds at each layer: differences of class means, principal components, and what they cause."""
