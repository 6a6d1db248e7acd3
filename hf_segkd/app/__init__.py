"""The files of a Hugging Face Space that shows a student beside its teacher."""
