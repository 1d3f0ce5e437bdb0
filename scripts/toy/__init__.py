"""The toy world: a small synthetic world of pictures and texts in the reference's file formats."""
