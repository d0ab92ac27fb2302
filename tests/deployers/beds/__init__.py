"""Real systems to deploy on, each started by a test session, on loopback, and stopped by process id."""
