"""The stages of a run as :mod:`compress.pipeline` orders them: each files what it makes in the store."""
