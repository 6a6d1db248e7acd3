"""A run: `trainer` holds `DistillationTrainer`; all else here is what it calls, and nothing here sees the trainer."""
