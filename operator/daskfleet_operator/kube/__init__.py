"""Reading and writing the API server. Knows nothing of Dask's policies: those are in `daskfleet_operator.plan`."""
