"""Providers of machines: the protocols in base.py, one package each behind them."""
