"""Benchmarks against peers: `./run bench` for all, `./run bench first_copy export` for some.

Every bench runs itself and its peers on the same disk in the same run, several times in turn, and reports
medians and ratios. What a bench measures stands at the top of its module.
"""
