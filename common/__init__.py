"""What all tasks share: configuration, data, modeling and the engine that runs them."""
