"""Reading images, and data sets in the layouts people have them in."""
