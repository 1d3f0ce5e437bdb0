"""Speed and memory of training steps and of the data path."""
