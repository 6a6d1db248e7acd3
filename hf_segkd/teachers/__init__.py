"""Teachers: other pixels, other classes, the test before the first step, and how they run."""
