"""AdamW for PyTorch whose optimizer state is paged across GPU memory, host RAM and disk."""
