"""Recipes, the demo and the benchmarks: what uses the library, and nothing that the library uses.

demo.py is `longconv demo`; benchmarks/ is `longconv bench`. Results are CSV files beside the benchmarks.
"""
