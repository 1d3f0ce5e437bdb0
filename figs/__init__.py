"""The figures of the README, drawn from the tree and from a toy run."""
