"""The PyTorch code that is measured beside the library's."""
