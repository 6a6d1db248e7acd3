"""Train a network on its labels alone: accelerate launch scripts/train.py --config FILE.yaml [--flag value]."""

from hf_segkd.commands.training import main

if __name__ == "__main__":
    main()
