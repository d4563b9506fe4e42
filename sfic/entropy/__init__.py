"""Lossless coding of integer symbols: frozen integer tables and the range coder over them.

No float ever decides a bit here. What predicts a symbol (mean, scale) belongs in a model on top.
"""
