"""``make bench``: the runtime's figures beside its peers' and the machine's own limit, from one run."""
