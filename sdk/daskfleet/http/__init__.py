"""What the HTTP servers of scheduler and worker share. Import it where one is asked for: tornado costs 40 ms."""
