"""Tuning τ: batches, the loss on supervised positions, one trial, and the Ray Train workers that run trials one after another."""
