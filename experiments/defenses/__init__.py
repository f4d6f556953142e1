"""Published kinds of defense in PyTorch, each as its ``build()`` returns it, for ``evaluate --defense=FILE.py:build``.

From a checkout, since the networks come from ``benchmarks.peers``. :mod:`~experiments.defenses.gallery` measures them.
"""
