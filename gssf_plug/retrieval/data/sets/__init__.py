"""The data sets of the field, one file each, all giving the same columns."""
