"""What `DistillationTrainer` is made of: its inputs, its checkpoints, and what watches over a run."""
