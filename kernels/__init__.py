"""How a convolution is computed: one folder per family. Imports torch (and triton, lazily), nothing else of longconv.

Each folder has a reference in float64, fast implementations, and its public functions in `__init__.py`;
`longconv.functional` re-exports those.
"""
