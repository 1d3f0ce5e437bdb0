"""Looking into what a model attends to."""
