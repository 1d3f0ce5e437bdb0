"""The figures of the README, drawn from the code and from toy runs."""
