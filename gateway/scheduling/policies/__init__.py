"""The order of jobs. One file per policy; `policy.py` has the interface and picks one by name."""
