"""Scalable face image coding on a StyleGAN prior: the codec, a library with no network in it."""
