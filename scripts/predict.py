"""Draw what a network sees: python scripts/predict.py --model DIR_OR_ID --images FILES_OR_DIRS --output DIR."""

from hf_segkd.commands.prediction import main

if __name__ == "__main__":
    main()
