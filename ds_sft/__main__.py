"""`python -m ds_sft` runs the main job, exactly as `python ds_sft/train.py` does."""

from ds_sft.train import main

if __name__ == "__main__":
    main()
