"""Base images: the Python and the libraries below what this project builds; `base.py` says which kinds there are."""
