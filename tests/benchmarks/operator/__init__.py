"""How far operators scale on a real API server with simulated nodes: both operators, and the bed's own limit."""
