"""Distil a student from a teacher: accelerate launch scripts/distill.py --config FILE.yaml [--flag value]."""

from hf_segkd.commands.training import main

if __name__ == "__main__":
    main()
