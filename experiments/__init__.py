"""Recipes, the demo and the benchmarks: what uses the library, and nothing that the library uses.

demo.py is `longconv demo`; benchmarks/ is `longconv bench`, and results are CSV files beside them. recipes/ are what
`longconv train NAME` runs; results.py keeps the table of these runs, in results/, and reports/ are `longconv report`.
"""
