"""What is drawn on a training sample. All of it takes a numpy Generator, so that a sample is the same on any worker."""

import cv2

# The workers of a stage are as many as the processors: OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)
