"""The product of constants and values: blocks.py is compiled, launches.py sizes it, product.py calls it."""
