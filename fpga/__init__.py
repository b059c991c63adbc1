"""Model to integer graph to program to soft NPU; imports nothing of the other packages. Not built yet."""
