"""How long it takes to have many workers, by each manager, against its peer; see `__main__`."""
