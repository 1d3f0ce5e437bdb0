"""The toy world: small synthetic datasets in the file formats of the reference implementation."""
