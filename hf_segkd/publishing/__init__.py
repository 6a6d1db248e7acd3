"""From a trained student to the Hub: the publication with its card, the upload, the Space."""
