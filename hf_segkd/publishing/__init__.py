"""From a trained student to the Hub, for the publishing command and the trainer.

`card_facts` holds the facts of a card, `comparisons` checks which scores may stand on it side by side, `privacy`
removes what must not be published, `model_card` renders `model_card_template.md`. `publication` writes the folder of a
student with its card, `space` that of a Space, `hub` uploads folders, `pushes` does so in the background of a training.
"""
