"""Commands, and the scripts that start them."""
