"""What the library asks of XLA; imported first, before JAX, and imports nothing but the standard library."""
