"""The scheduling lab: workloads, a simulator that drives the server's own scheduler, and the paper reproduced."""
