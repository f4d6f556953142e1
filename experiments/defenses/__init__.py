"""Published kinds of defense in PyTorch, each as its ``build()`` returns it, for ``evaluate --defense=FILE.py:build``.

:mod:`~experiments.defenses.gallery` measures them.
"""
