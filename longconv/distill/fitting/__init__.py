"""A bank of long filters as modal recurrences: taps (D, L) in, poles, residues and a report out.

fit.py is `distill_filter`; bank.py what all methods share (what is better, what is stable, parallel pieces); best.py,
hankel.py, balanced.py, rational.py and gradient.py are the methods; pursuit.py and polish.py the parts of the best one;
hankel_svd.py, exponentials.py and residues.py the linear algebra; report.py says how well it went. Nothing here knows
of models.
"""
