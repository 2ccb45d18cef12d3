"""One definition of each figure that a result reports."""
