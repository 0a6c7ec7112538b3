"""One file a peer, run by run.py with the interpreter of that peer's environment."""
