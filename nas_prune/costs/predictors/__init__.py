"""Latency predictors: sizes of the axes -> milliseconds, learnt from timings."""
