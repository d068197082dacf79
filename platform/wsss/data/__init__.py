"""Data sets: lists, pictures, image-level labels and masks, handed out by declaration."""
