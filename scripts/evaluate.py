"""Score a network: python scripts/evaluate.py --model DIR_OR_ID --dataset NAME [--data_dir DIR]."""

from hf_segkd.commands.evaluation import main

if __name__ == "__main__":
    main()
