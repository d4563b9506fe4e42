"""Measuring the codec: judges that no loss has seen, and the anchor to beat.

Nothing here is needed to encode or decode.
"""
