"""What is drawn on a training sample. All of it takes a numpy Generator, so that a sample is the same on any worker."""
