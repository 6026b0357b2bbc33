"""Skipjoin beside other servers: the same model, the same requests, the same cores, in interleaved rounds."""
