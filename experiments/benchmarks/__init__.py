"""Benchmarks of operators against the alternatives, one file each; run as `longconv bench NAME`.

fftconv.py   long convolution: torch.fft, scipy, julius
harness.py   what they share: oracle gate, interleaved timing, peak memory
report.py    the columns of a row, CSV file, table and plot
results/     rows appended by every run, with device, versions and date
"""
