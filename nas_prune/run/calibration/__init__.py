"""Calibrations: what this machine was seen to take, and the predictor that learnt from it."""
