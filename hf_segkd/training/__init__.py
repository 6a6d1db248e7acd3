"""Training: `trainer` holds `DistillationTrainer`; it calls the other modules, none of which imports it."""
