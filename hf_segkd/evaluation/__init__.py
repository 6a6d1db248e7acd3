"""Scores, reports and pictures of what a network predicts."""
