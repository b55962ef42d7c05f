// Found, for many a text includes it; what a kernel uses of it is refused by name (translation.py).
